"""Rows in FP8, by the kernels in Triton's interpreter or on a GPU, and by PyTorch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

pytest.importorskip("triton", reason="the kernels need Triton, which this machine lacks")

from nvila_core.kernels import attention, fp8, layer
from nvila_core.models.fp8_rows import RowsFP8, joined_splits, quantize_rows
from nvila_core.models.fused import add_rms_norm, gated
from nvila_core.models.kernels import Switch
from nvila_core.models.quantize import check_kernel

CPU = torch.device("cpu")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton interpret the kernels on the processor."""
    if torch.cuda.is_available():
        pytest.skip("on a machine with a GPU Triton compiles, and cannot interpret too")
    monkeypatch.setattr(Switch, "disabled", False)
    monkeypatch.setattr(Switch, "interpreted", True)


def steps(x: Tensor, weight: Tensor) -> dict[str, Callable[[bool], Any]]:
    """Return the steps that write rows in FP8 if they are asked to, for x [N, 2 * size].

    Args:
        x: finite or not.
        weight: [size].
    """
    first, second = x.chunk(2, 1)
    return {
        "norm of a sum": lambda fp8: add_rms_norm(first, second.contiguous(), weight, 1e-5, fp8)[0],
        "norm": lambda fp8: add_rms_norm(first, None, weight, 1e-5, fp8)[0],
        "gate": lambda fp8: gated(x, F.silu, fp8),
    }


def assert_close_codes(found: RowsFP8, expected: RowsFP8) -> None:
    """Assert equal scales, and codes but for rounding: the interpreter does not round as GPUs do,
    and loses the carry where a code becomes a power of two.
    """
    torch.testing.assert_close(found.scales, expected.scales, rtol=1e-6, atol=0, equal_nan=True)
    good = expected.scales.isfinite().flatten()
    wide = expected.codes[good].float()
    carried = wide.abs().log2() % 1 == 0
    close = (found.codes[good].float() - wide).abs() <= wide.abs() / 8 + 2**-9
    assert (close | carried).all()


@pytest.mark.parametrize(("size", "gelu"), [(48, False), (112, True), (9000, False), (9000, True)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_quantized_alike_by_the_kernel_and_by_pytorch(
    dtype: torch.dtype, size: int, gelu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given rows with a stride, of which two are not finite
    torch.manual_seed(4)
    x = (torch.randn(5, 2, size) * 3).to(dtype)[:, 0]
    x[1, 5], x[2, 6] = float("nan"), float("inf")
    expected = quantize_rows(x, gelu)
    # when
    monkeypatch.setattr(Switch, "interpreted", True)
    found = quantize_rows(x, gelu)
    # then
    assert expected.scales.isfinite().flatten().tolist() == [True, False, False, True, True]
    assert found.dtype == dtype
    assert_close_codes(found, expected)


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("size", [48, 96, 5000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["norm of a sum", "norm", "gate"])
def test_steps_write_the_rows_that_would_be_quantized_after_them(
    name: str, dtype: torch.dtype, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given rows with a stride, of zeros, very small, very large, and not finite
    torch.manual_seed(5)
    x = torch.randn(6, 3 * size) * torch.tensor([1.0, 0.0, 1e-5, 1e4, 1.0, 1.0])[:, None]
    x[4, 7], x[5, 8] = float("nan"), float("inf")
    step = steps(x.to(dtype)[:, : 2 * size], torch.randn(size).to(dtype))[name]
    # when a step writes them in FP8
    found = step(True)
    # then scales and codes are, bit by bit, those of the rows that it writes otherwise
    assert isinstance(found, RowsFP8)
    expected = quantize_rows(step(False))
    assert found.dtype == dtype
    torch.testing.assert_close(found.scales, expected.scales, rtol=0, atol=0, equal_nan=True)
    good = expected.scales.isfinite().flatten()
    assert good.tolist() == [True] * 4 + [False] * 2
    assert torch.equal(found.codes[good].view(torch.uint8), expected.codes[good].view(torch.uint8))
    # and without kernels the product quantizes them, to nearly the same
    monkeypatch.setattr(Switch, "disabled", True)
    plain = step(True)
    assert isinstance(plain, Tensor)
    limit = 1e-5 if dtype is torch.float32 else 2**-6  # rounded twice
    torch.testing.assert_close(
        quantize_rows(plain).scales, found.scales, rtol=limit, atol=1e-14, equal_nan=True
    )


def split_attention(splits: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Return random parts, their logarithms, tiles, and an empty result, of six rows.

    One row has few parts with keys, one has none of the tiles, one is not finite.
    """
    torch.manual_seed(splits)
    heads, size = 6, 24
    parts = torch.randn(splits, 6, heads, size)
    log_sums = torch.randn(splits, 6, heads) * 8
    log_sums[1:, 1], parts[1:, 1] = float("-inf"), 0.0
    log_sums[0, 2, 3] = float("nan")
    tiles = torch.tensor([[0, 1], [1, 1], [2, 1], [3, 1], [0, 0], [5, 1]], dtype=torch.int32)
    out = torch.zeros(6, heads, size, dtype=dtype)
    found = (parts, log_sums, torch.cat([tiles, tiles], 1).contiguous(), out)
    return tuple(one.to(device) for one in found)


def compare_joined(splits: int, dtype: torch.dtype, device: torch.device) -> None:
    """Assert that parts are joined in FP8 as they are joined and quantized in two launches."""
    parts, log_sums, tiles, out = split_attention(splits, dtype, device)
    rows, heads, size = out.shape

    found = joined_splits(parts, log_sums, tiles, out)

    attention.combine_splits[(len(tiles), heads)](
        parts, log_sums, out, tiles, rows, heads, size, 32, splits
    )
    written = [0, 1, 2, 3, 5]
    expected = quantize_rows(out.flatten(1))
    # the order of addition may move a number to the next one of its dtype
    limit = 1e-6 if dtype is torch.float32 else 2**-7
    torch.testing.assert_close(
        found.scales[written], expected.scales[written], rtol=limit, atol=0, equal_nan=True
    )
    assert expected.scales[written].isfinite().flatten().tolist() == [True, True, False, True, True]
    good = [0, 1, 3, 5]
    a, b = found.codes[good].float(), expected.codes[good].float()
    assert ((a - b).abs() <= b.abs() / 8 + 2**-9).all()
    assert (a == b).float().mean() > 0.95


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize("splits", [2, 16])
@pytest.mark.parametrize("dtype", DTYPES)
def test_divided_attention_is_joined_and_quantized_at_once(
    dtype: torch.dtype, splits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # with several passes over the parts, and with one
    for at_once in (2**9, 2**14):
        monkeypatch.setattr("nvila_core.models.fp8_rows.JOINED_AT_ONCE", at_once)
        compare_joined(splits, dtype, CPU)


class Idle:
    """A kernel that is launched and writes nothing."""

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **options: None


@pytest.mark.slow
@pytest.mark.usefixtures("interpreted")
def test_kernels_that_write_right_rows_stay_on() -> None:
    check_kernel("fp8", CPU, torch.bfloat16)
    assert not Switch.disabled


@pytest.mark.usefixtures("interpreted")
@pytest.mark.parametrize(
    ("module", "name", "problem"),
    [
        (layer, "sum_and_norm", "a norm"),
        (fp8, "rows_to_fp8", "rows"),
        (attention, "combine_splits_to_fp8", "attention"),
    ],
)
def test_kernels_that_write_wrong_rows_are_turned_off_before_a_model_uses_them(
    module: Any, name: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a kernel that leaves its rows as it found them
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **o: empty(*a, **o).zero_())
    monkeypatch.setattr(module, name, Idle())
    # when FP8 is tried
    with pytest.warns(RuntimeWarning, match=f"in fp8: the product of {problem} is wrong"):
        check_kernel("fp8", CPU, torch.bfloat16)
    # then PyTorch computes, and is right
    assert Switch.disabled


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("gelu", [False, True])
def test_a_gpu_quantizes_rows_as_pytorch_does(gelu: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(6)
    x = torch.randn(300, 4304, device="cuda").bfloat16() * 3
    x[7, 9] = float("nan")
    found = quantize_rows(x, gelu)
    monkeypatch.setattr(Switch, "disabled", True)
    expected = quantize_rows(x, gelu)

    torch.testing.assert_close(found.scales, expected.scales, rtol=1e-2, atol=0, equal_nan=True)
    good = expected.scales.isfinite().flatten()
    assert good.sum() == 299
    same = (found.codes[good].float() == expected.codes[good].float()).float().mean()
    assert same > 0.95


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("rows", [1, 8, 65])
@pytest.mark.parametrize("size", [1536, 8960, 18944])
@pytest.mark.parametrize("name", ["norm of a sum", "norm", "gate"])
def test_steps_of_a_gpu_write_the_rows_that_would_be_quantized_after_them(
    name: str, size: int, rows: int
) -> None:
    torch.manual_seed(7)
    x = torch.randn(rows, 2 * size, device="cuda").bfloat16() * 3
    step = steps(x, torch.randn(size, device="cuda").bfloat16())[name]

    found, expected = step(True), quantize_rows(step(False))

    torch.testing.assert_close(found.scales, expected.scales, rtol=0, atol=0)
    assert torch.equal(found.codes.view(torch.uint8), expected.codes.view(torch.uint8))


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("splits", [2, 8, 64])
def test_a_gpu_joins_divided_attention_as_in_two_launches(splits: int) -> None:
    compare_joined(splits, torch.bfloat16, torch.device("cuda"))
