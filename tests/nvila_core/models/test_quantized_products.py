"""Products with quantized weights by Triton's kernels: in the interpreter, or on a GPU."""

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton, which this machine lacks")

from nvila_core.kernels import linear
from nvila_core.models import quantized_products
from nvila_core.models.kernels import Switch
from nvila_core.models.quantize import (
    TRIED,
    Format,
    Linear4,
    Linear8,
    LinearFP8,
    check_kernel,
    quantize_int4,
    quantize_int8,
    quantized,
    require_fp8,
)
from nvila_core.models.quantized_products import (
    FEW_ROWS,
    MANY_OUTPUTS,
    PROGRAMS,
    pack_halves,
    product_4_bits,
    product_8_bits,
    tiling_of,
    widened_4_bits,
)

DTYPES = [torch.float32, torch.bfloat16]
FORMATS: dict[str, type] = {"int8": Linear8, "int4": Linear4, "fp8": LinearFP8}
BLUR = {torch.float32: 1e-6, torch.bfloat16: 5e-3}
"""Largest relative error of a product whose result is rounded to a dtype."""


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let Triton interpret the kernels on the processor."""
    if torch.cuda.is_available():
        pytest.skip("on a machine with a GPU Triton compiles, and cannot interpret too")
    monkeypatch.setattr(Switch, "interpreted", True)


def error(found: Tensor | None, expected: Tensor) -> float:
    """Return the relative error."""
    assert found is not None
    return float((found.float() - expected.float()).norm() / expected.float().norm())


HOPPER, AMPERE = (9, 0), (8, 0)
SIZES = pytest.mark.parametrize(
    ("rows", "capability", "many"),
    [
        (1, HOPPER, MANY_OUTPUTS),
        (19, HOPPER, MANY_OUTPUTS),
        (64, HOPPER, MANY_OUTPUTS),
        (65, AMPERE, MANY_OUTPUTS),
        (128, HOPPER, MANY_OUTPUTS),
        (128, HOPPER, 48),
        (129, HOPPER, MANY_OUTPUTS),
        (129, AMPERE, 48),
        (200, HOPPER, 48),
        (FEW_ROWS, HOPPER, 48),
        (FEW_ROWS, AMPERE, MANY_OUTPUTS),
    ],
)
"""Rows, GPUs that multiply 64 outputs at once or 32, and outputs that count as many."""


def set_tiling(patch: pytest.MonkeyPatch, capability: tuple[int, int], many: int) -> None:
    """Divide products as on a GPU of a compute capability, as if few programs were enough."""
    patch.setattr(quantized_products, "capability_of", lambda _: capability)
    patch.setattr(quantized_products, "MANY_OUTPUTS", many)
    patch.setattr(quantized_products, "PROGRAMS", 1)


@SIZES
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_of_8_bits_are_multiplied_as_they_are_stored(
    dtype: torch.dtype,
    rows: int,
    capability: tuple[int, int],
    many: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given more than one tile of outputs, and rows with a stride
    set_tiling(monkeypatch, capability, many)
    torch.manual_seed(1)
    weight, bias = torch.randn(150, 112), torch.randn(150).to(dtype)
    x = torch.randn(rows, 2, 112).to(dtype)[:, 0]
    codes, scale = quantize_int8(weight, dtype)
    # when
    found, unbiased = (product_8_bits(x, codes, scale, added) for added in (bias, None))
    # then it is the product of the numbers that the codes stand for
    expected = x.float() @ (codes.float() * scale.float()[:, None]).T
    assert error(found, expected + bias.float()) < BLUR[dtype]
    assert error(unbiased, expected) < BLUR[dtype]


@SIZES
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize(("group", "inputs"), [(64, 320), (32, 96)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_of_4_bits_are_multiplied_as_they_are_stored(
    dtype: torch.dtype,
    group: int,
    inputs: int,
    rows: int,
    capability: tuple[int, int],
    many: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_tiling(monkeypatch, capability, many)
    torch.manual_seed(2)
    codes, scales = quantize_int4(torch.randn(48, inputs), group)
    packed, turned = pack_halves(codes, group), scales.transpose(0, 1).contiguous()
    x, bias = torch.randn(rows, 2, inputs).to(dtype)[:, 1], torch.randn(48).to(dtype)

    found = product_4_bits(x, packed, turned, group, bias)

    step, middle = scales.float().unbind(2)
    wide = (codes.unflatten(1, (-1, group)).float() - 8) * step[..., None] + middle[..., None]
    expected = x.float() @ wide.flatten(1).to(dtype).float().T
    assert error(found, expected + bias.float()) < BLUR[dtype]
    assert error(product_4_bits(x, packed, turned, group, None), expected) < BLUR[dtype]
    torch.testing.assert_close(
        widened_4_bits(packed, turned, group, torch.float32), wide.flatten(1)
    )


@pytest.mark.usefixtures("kernels")
def test_more_rows_are_multiplied_by_weights_that_are_widened_in_memory() -> None:
    torch.manual_seed(4)
    weight, x = torch.randn(48, 64), torch.randn(FEW_ROWS + 1, 64)
    assert product_8_bits(x, *quantize_int8(weight, torch.float32), None) is None

    codes, scales = quantize_int4(weight, 64)
    packed, turned = pack_halves(codes, 64), scales.transpose(0, 1).contiguous()
    wide = widened_4_bits(packed, turned, 64, torch.float32)
    assert error(product_4_bits(x, packed, turned, 64, None), x @ wide.T) < 1e-6


CAPABILITIES = [(8, 0), (8, 7), (8, 9), (9, 0), (10, 0), (12, 0)]
LOW = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_one_program_multiplies_all_rows_of_its_outputs(capability: tuple[int, int]) -> None:
    for dtype, rows in product(LOW, range(1, FEW_ROWS + 1)):
        assert tiling_of(rows, MANY_OUTPUTS, dtype, capability).rows >= rows
        assert tiling_of(rows, 1536, dtype, capability).rows >= min(rows, 128)
    for rows in range(1, FEW_ROWS + 1):
        assert tiling_of(rows, 1536, torch.float32, capability).rows >= min(rows, 64)


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("outputs", [1536, 3584, MANY_OUTPUTS - 1, MANY_OUTPUTS])
def test_few_outputs_keep_as_many_programs_busy(outputs: int, capability: tuple[int, int]) -> None:
    for dtype, rows in product([*LOW, torch.float32], range(1, FEW_ROWS + 1)):
        tiling = tiling_of(rows, outputs, dtype, capability)
        assert -(-outputs // tiling.outputs) * -(-rows // tiling.rows) >= PROGRAMS


@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("dtype", [*LOW, torch.float32])
def test_every_tiling_is_tried_before_a_model_uses_it(
    dtype: torch.dtype, capability: tuple[int, int]
) -> None:
    sizes = product(range(1, FEW_ROWS + 1), (16, 1536, 3584, MANY_OUTPUTS, 37_888))
    used = {tiling_of(*size, dtype, capability) for size in sizes}
    tried = {tiling_of(*size, dtype, capability) for size in TRIED if size[0] <= FEW_ROWS}
    assert used == tried
    assert max(rows for rows, _ in TRIED) > FEW_ROWS


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("wrong", [128, 256])
def test_a_tiling_that_is_wrong_is_found_before_a_model_uses_it(
    wrong: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a kernel that is wrong in programs of so many rows
    kernel = linear.multiply_8_bits
    names = kernel.arg_names

    class Wrong:
        """The kernel, wrong in one tiling."""

        def __getitem__(self, grid: tuple[int, int]) -> Callable[..., None]:
            def launch(*args: Any, **options: Any) -> None:
                kernel[grid](*args, **options)
                if args[names.index("TILE_ROWS")] == wrong:
                    args[names.index("out")].neg_()

            return launch

    monkeypatch.setattr(linear, "multiply_8_bits", Wrong())
    monkeypatch.setattr(Switch, "disabled", False)
    # when int8 is tried
    with pytest.warns(RuntimeWarning, match="a product in int8: the product of rows is wrong"):
        check_kernel("int8", torch.device("cpu"), torch.bfloat16)
    # then PyTorch computes, and is right
    assert Switch.disabled


def test_pytorch_widens_4_bits_as_the_kernel_of_a_cpu_does() -> None:
    torch.manual_seed(3)
    weight, x = torch.randn(64, 128), torch.randn(4, 128)
    codes, scales = quantize_int4(weight, 64)
    turned = scales.transpose(0, 1).contiguous()

    found = product_4_bits(x, pack_halves(codes, 64), turned, 64, None)

    with torch.inference_mode():
        assert error(found, quantized(weight, "int4", torch.float32)(x)) < 0.01


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
@pytest.mark.parametrize("rows", [1, 3, 17, 64, 100, 200, 2048])
@pytest.mark.parametrize(("outputs", "inputs"), [(1152, 4304), (6144, 1536), (1536, 8960)])
@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_a_gpu_multiplies_as_the_processor_does(
    kind: Format, outputs: int, inputs: int, rows: int
) -> None:
    # given a layer with a bias
    if kind == "fp8":
        require_fp8(torch.device("cuda"), torch.bfloat16)
    torch.manual_seed(5)
    weight, x = torch.randn(outputs, inputs) / inputs**0.5, torch.randn(rows, inputs).bfloat16()
    bias = torch.nn.Parameter(torch.randn(outputs).bfloat16(), requires_grad=False)
    here, there = (quantized(w, kind, torch.bfloat16) for w in (weight, weight.cuda()))
    assert isinstance(there, Linear8 if inputs % 32 and kind == "int4" else FORMATS[kind])
    here.bias, there.bias = bias, torch.nn.Parameter(bias.cuda(), requires_grad=False)
    # when
    with torch.inference_mode():
        found, expected = there(x.cuda()).cpu(), here(x)
    # then they differ by rounding; few rows keep their precision where many become FP8
    assert error(found, expected) < (0.03 if kind == "fp8" else 0.01)
