"""Linear layers with weights in 8 or 4 bits; activations keep their dtype.

* 8 bits: a scale for each output. Rows are dequantized a few at a time, so that they stay in the
  processor's cache; on a CPU in 16 bits PyTorch's own kernel multiplies without dequantizing.
* 4 bits: a scale and an offset for each 64 or 32 weights along the input; computed by PyTorch's
  kernels, which need bfloat16.

Embeddings, norms, the projector and the output head keep their precision.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvila_core.errors import NVILAError, first_line

MODES = ("int8", "int4")
GROUP_SIZES = (64, 32)
MAX_DEQUANTIZED = {"cpu": 2**20, "cuda": 2**26}
"""Weights dequantized at a time: as many as a CPU's cache holds; a GPU has room for more."""

MAX_QUANTIZED = 2**18
"""Weights quantized at a time."""

KERNELS = torch.ops.aten


@dataclass(frozen=True)
class Precision:
    """Bits of the linear layers of the language model and of the vision tower."""

    language: int
    vision: int


class QuantizedLinear(nn.Module):
    """Replaces a linear layer: [..., inputs] to [..., outputs] in the dtype of the input.

    The loader sets `bias`.
    """

    bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("bias", None)

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + bias."""
        out = self.product(x.reshape(-1, x.shape[-1]))
        if self.bias is not None:
            out = out + self.bias
        return out.reshape(*x.shape[:-1], -1)

    def product(self, x: Tensor) -> Tensor:
        """Return x W^T [rows, outputs] for x [rows, inputs]."""
        raise NotImplementedError


class Linear8(QuantizedLinear):
    """8 bits, symmetric, with a scale for each row of `weight` [outputs, inputs]."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        parts = [quantize_int8(part.float(), dtype) for part in split_rows(weight)]
        self.register_buffer("weight", torch.cat([codes for codes, _ in parts]))
        self.register_buffer("scale", torch.cat([scale for _, scale in parts]))

    @classmethod
    def of(cls, weight: Tensor, scale: Tensor, bias: Tensor | None) -> "Linear8":
        """Return the layer of int8 codes [outputs, inputs] and their scales [outputs]."""
        layer = cls.__new__(cls)
        QuantizedLinear.__init__(layer)
        layer.register_buffer("weight", weight)
        layer.register_buffer("scale", scale)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return layer

    def product(self, x: Tensor) -> Tensor:
        """Return x W^T [rows, outputs] for x [rows, inputs]."""
        if x.device.type == "cpu" and x.dtype is not torch.float32:
            out: Tensor = KERNELS._weight_int8pack_mm(x, self.weight, self.scale)
            return out
        rows = max(1, MAX_DEQUANTIZED[x.device.type] // self.weight.shape[1])
        parts = [F.linear(x, part.to(x.dtype)) for part in self.weight.split(rows)]
        return torch.cat(parts, dim=-1).mul_(self.scale)


class Linear4(QuantizedLinear):
    """4 bits, with a scale and an offset for each group of weights along the inputs."""

    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, group: int) -> None:
        super().__init__()
        self.group = group
        parts = [quantize_int4(part.float(), group) for part in split_rows(weight)]
        self.register_buffer("weight", torch.cat([pack_int4(codes) for codes, _ in parts]))
        scales = torch.cat([scale for _, scale in parts])
        self.register_buffer("scales", scales.transpose(0, 1).contiguous())

    def product(self, x: Tensor) -> Tensor:
        """Return x W^T [rows, outputs] for x [rows, inputs]."""
        cpu = x.device.type == "cpu"
        kernel = KERNELS._weight_int4pack_mm_for_cpu if cpu else KERNELS._weight_int4pack_mm
        out: Tensor = kernel(x.bfloat16(), self.weight, self.group, self.scales)
        return out.to(x.dtype)


def split_rows(weight: Tensor) -> tuple[Tensor, ...]:
    """Split `weight` by rows, so that quantizing it needs little extra memory.

    The 4-bit kernels order the codes by blocks of at most 64 rows.
    """
    rows = max(64, MAX_QUANTIZED // weight.shape[1] // 64 * 64)
    parts: tuple[Tensor, ...] = weight.split(rows)
    return parts


def quantize_int8(weight: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return int8 codes [outputs, inputs] from -127 to 127, and their scales [outputs]."""
    scale = (weight.abs().amax(1) / 127).clamp(min=torch.finfo(torch.float16).tiny).to(dtype)
    codes = (weight / scale.float()[:, None]).round_().clamp_(-127, 127)
    return codes.to(torch.int8), scale


def quantize_int4(weight: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """Return int32 codes [outputs, inputs] from 0 to 15, and bfloat16 [outputs, groups, 2]: the
    scale, and the value of code 8.
    """
    groups = weight.unflatten(1, (-1, group))
    low, high = groups.aminmax(dim=-1)
    scale = ((high - low) / 15).clamp(min=1e-6).bfloat16()
    middle = (low + 8 * scale.float()).bfloat16()
    steps = (groups - middle.float()[..., None]) / scale.float()[..., None]
    codes = steps.add_(8).round_().clamp_(0, 15)
    return codes.to(torch.int32).flatten(1), torch.stack([scale, middle], -1)


def pack_int4(codes: Tensor) -> Tensor:
    """Pack int32 codes [outputs, inputs] from 0 to 15 in the order that the kernel reads."""
    packed: Tensor
    if codes.device.type == "cpu":
        packed = KERNELS._convert_weight_to_int4pack_for_cpu(codes, 1)
        return packed
    inner = next(n for n in (8, 4, 2) if codes.shape[1] % (16 * n) == 0)
    halves = (codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8)
    packed = KERNELS._convert_weight_to_int4pack(halves, inner)
    return packed


def quantized(weight: Tensor, bits: int, dtype: torch.dtype) -> QuantizedLinear:
    """Return the quantized layer of `weight` [outputs, inputs], for inputs of `dtype`."""
    outputs, inputs = weight.shape
    group = group_size(outputs, inputs, bits)
    return Linear8(weight, dtype) if group is None else Linear4(weight, group)


def group_size(outputs: int, inputs: int, bits: int) -> int | None:
    """Return the number of weights that share a scale in 4 bits; None for a layer that gets 8 bits.

    Layers that the 4-bit kernels do not support get 8 bits: inputs must be a multiple of 32,
    outputs of 16.
    """
    group = next((size for size in GROUP_SIZES if inputs % size == 0), None)
    return group if bits == 4 and outputs % 16 == 0 else None


def quantized_bytes(outputs: int, inputs: int, bits: int, dtype: torch.dtype) -> int:
    """Return the bytes that `quantized` needs for a weight [outputs, inputs]."""
    group = group_size(outputs, inputs, bits)
    if group is None:
        return outputs * (inputs + dtype.itemsize)
    return outputs * (inputs // 2 + 2 * torch.bfloat16.itemsize * inputs // group)


def choose_precision(
    quantize: str | None, device: torch.device, dtype: torch.dtype
) -> Precision | None:
    """Return the precision that `quantize` names; None for full precision.

    Raises:
        NVILAError: the name is unknown, or the kernels do not work on this device.
    """
    if quantize is None:
        return None
    if quantize not in MODES:
        raise NVILAError(
            f"Unknown quantization {quantize!r}: use 'int8' or 'int4', or omit it for full "
            "precision."
        )
    bits = 4 if quantize == "int4" else 8
    for used in {bits, 8}:  # the kernels differ by processor and by PyTorch's version
        check_kernel(used, device, dtype)
    return Precision(language=bits, vision=8)


@torch.inference_mode()
def check_kernel(bits: int, device: torch.device, dtype: torch.dtype) -> None:
    """Multiply a small quantized matrix as the model will.

    Raises:
        NVILAError: the kernel fails or its product is wrong.
    """
    problem = "the product is wrong"
    try:
        weight = torch.linspace(-1, 1, 64 * 128, device=device).sin().reshape(64, 128)
        x = torch.linspace(-1, 1, 3 * 128, device=device).cos().reshape(3, 128)
        expected = x @ weight.T
        found = quantized(weight, bits, dtype)(x.to(dtype)).float()
        good = bool((found - expected).norm() < 0.1 * expected.norm())
    except Exception as error:  # which exception a kernel raises depends on the platform
        good, problem = False, first_line(error)
    if not good:
        raise NVILAError(
            f"Weights in {bits} bits do not work on {device} in {str(dtype).removeprefix('torch.')}"
            f" ({problem}): omit quantize, or use another device or dtype."
        )


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers; shared tensors count once."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
