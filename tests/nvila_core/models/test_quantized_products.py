"""Products with quantized weights by Triton's kernels: in the interpreter, or on a GPU."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the kernels need Triton, which this machine lacks")

from nvila_core.models.kernels import Switch
from nvila_core.models.quantize import (
    Format,
    Linear4,
    Linear8,
    LinearFP8,
    quantize_int4,
    quantize_int8,
    quantized,
    require_fp8,
)
from nvila_core.models.quantized_products import (
    FEW_ROWS,
    pack_halves,
    product_4_bits,
    product_8_bits,
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


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("rows", [1, 19, FEW_ROWS[8]])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_of_8_bits_are_multiplied_as_they_are_stored(dtype: torch.dtype, rows: int) -> None:
    # given more than one tile of outputs, and rows with a stride
    torch.manual_seed(1)
    weight, bias = torch.randn(150, 112), torch.randn(150).to(dtype)
    x = torch.randn(rows, 2, 112).to(dtype)[:, 0]
    codes, scale = quantize_int8(weight, dtype)
    # when
    found = product_8_bits(x, codes, scale, bias)
    # then it is the product of the numbers that the codes stand for
    wide = codes.float() * scale.float()[:, None]
    assert error(found, x.float() @ wide.T + bias.float()) < BLUR[dtype]


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("rows", [1, 19, FEW_ROWS[4] + 1])
@pytest.mark.parametrize(("group", "inputs"), [(64, 320), (32, 96)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_of_4_bits_are_multiplied_as_they_are_stored(
    dtype: torch.dtype, group: int, inputs: int, rows: int
) -> None:
    torch.manual_seed(2)
    codes, scales = quantize_int4(torch.randn(48, inputs), group)
    packed, turned = pack_halves(codes, group), scales.transpose(0, 1).contiguous()
    x, bias = torch.randn(rows, inputs).to(dtype), torch.randn(48).to(dtype)

    found = product_4_bits(x, packed, turned, group, bias)

    step, middle = scales.float().unbind(2)
    wide = (codes.unflatten(1, (-1, group)).float() - 8) * step[..., None] + middle[..., None]
    expected = x.float() @ wide.flatten(1).to(dtype).float().T + bias.float()
    assert error(found, expected) < BLUR[dtype]
    torch.testing.assert_close(
        widened_4_bits(packed, turned, group, torch.float32), wide.flatten(1)
    )


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
@pytest.mark.parametrize("rows", [1, 3, 17, 64, 100, 2048])
@pytest.mark.parametrize(("outputs", "inputs"), [(1152, 4304), (2048, 1536), (1536, 8960)])
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
