"""Linear layers with weights in 8 or 4 bits.

* int8: a scale for each output. On a GPU a kernel multiplies up to 256 rows, and widens the weights
  in registers; for more rows they are widened first. On a CPU rows are dequantized a few at a time,
  so that they stay in the processor's cache; in 16 bits PyTorch's own kernel multiplies without
  dequantizing.
* int4: a scale and an offset for each 64 or 32 weights along the input. On a CPU PyTorch's kernel
  computes, which needs bfloat16.
* fp8: weights and activations in FP8 (e4m3), with a scale for each output and each row, for tensor
  cores of GPUs that multiply FP8. A CPU only emulates it, which shows how answers change.

Embeddings, norms, and the output head keep their precision, and so do activations but in fp8.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvila_core.errors import NVILAError, first_line
from nvila_core.models.activations import GELU_TANH, Activation
from nvila_core.models.fp8_rows import RowsFP8, fp8_kernels, joined_splits, quantize_rows
from nvila_core.models.fused import add_rms_norm, gated
from nvila_core.models.kernels import Switch, kernels_for
from nvila_core.models.quantized_products import (
    FEW_ROWS,
    MANY_OUTPUTS,
    pack_halves,
    product_4_bits,
    product_8_bits,
)
from nvila_core.quantization import QUANTIZATIONS

Format = Literal["int8", "int4", "fp8"]

GROUP_SIZES = (64, 32)
MAX_DEQUANTIZED = {"cpu": 2**20, "cuda": 2**28}
"""Weights dequantized at a time: as many as a CPU's cache holds; a GPU has room for more."""

MAX_QUANTIZED = 2**18
"""Weights quantized at a time."""

FP8_CAPABILITY = (8, 9)
"""Compute capability at least of GPUs that multiply FP8."""

FAST_ACCUMULATION = True
"""Add products of FP8 in fewer bits than float32: Hopper multiplies faster."""

KERNELS = torch.ops.aten

Inputs = list[tuple[str, Tensor | RowsFP8, Tensor]]
"""What a product is tried with: its name, the rows, and the numbers that they stand for."""


@dataclass(frozen=True)
class Precision:
    """Formats of the linear layers of each network; None: full precision."""

    language: Format | None = None
    vision: Format | None = None
    projector: Format | None = None


class QuantizedLinear(nn.Module):
    """Replaces a linear layer: [..., inputs] to [..., outputs] in the dtype of the input.

    The loader sets `bias`.
    """

    bias: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("bias", None)

    @classmethod
    def of(cls, bias: Tensor | None, **buffers: Tensor) -> Self:
        """Return the layer with these buffers and a bias, without quantizing anything."""
        layer = cls.__new__(cls)
        QuantizedLinear.__init__(layer)
        for name, buffer in buffers.items():
            layer.register_buffer(name, buffer)
        layer.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + bias."""
        out = self.product(x.reshape(-1, x.shape[-1]))
        return out.reshape(*x.shape[:-1], -1)

    def product(self, x: Tensor) -> Tensor:
        """Return x W^T + bias [rows, outputs] for x [rows, inputs]."""
        raise NotImplementedError

    def biased(self, out: Tensor) -> Tensor:
        """Return out + bias."""
        return out if self.bias is None else out + self.bias


class Linear8(QuantizedLinear):
    """8 bits, symmetric, with a scale for each row of `weight` [outputs, inputs]."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        super().__init__()
        parts = [quantize_int8(part.float(), dtype) for part in split_rows(weight)]
        self.register_buffer("weight", torch.cat([codes for codes, _ in parts]))
        self.register_buffer("scale", torch.cat([scale for _, scale in parts]))

    def product(self, x: Tensor) -> Tensor:
        """Return x W^T + bias [rows, outputs] for x [rows, inputs]."""
        if (found := product_8_bits(x, self.weight, self.scale, self.bias)) is not None:
            return found
        if x.device.type == "cpu" and x.dtype is not torch.float32:
            return self.biased(KERNELS._weight_int8pack_mm(x, self.weight, self.scale))
        rows = max(1, MAX_DEQUANTIZED[x.device.type] // self.weight.shape[1])
        if x.device.type != "cpu" and rows >= len(self.weight):
            return F.linear(x, self.weight * self.scale[:, None], self.bias)
        parts = [F.linear(x, part.to(x.dtype)) for part in self.weight.split(rows)]
        return self.biased(torch.cat(parts, dim=-1).mul_(self.scale))


class LinearFP8(QuantizedLinear):
    """FP8 [outputs, inputs] with a float32 scale for each row; rows of x are quantized alike."""

    weight: Tensor
    scale: Tensor
    _adds_bias_apart = False

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        parts = [quantize_rows(part.float()) for part in split_rows(weight)]
        self.register_buffer("weight", torch.cat([part.codes for part in parts]))
        self.register_buffer("scale", torch.cat([part.scales for part in parts]).flatten())

    def forward(self, x: Tensor | RowsFP8) -> Tensor:
        """Return x W^T + bias: [..., inputs] to [..., outputs], or of rows that are in FP8."""
        return self.multiply(x) if isinstance(x, RowsFP8) else super().forward(x)

    def product(self, x: Tensor, gelu: bool = False) -> Tensor:
        """Return x W^T + bias [rows, outputs] for x [rows, inputs], or for GELU(x)."""
        return self.multiply(quantize_rows(x, gelu))

    def multiply(self, x: RowsFP8) -> Tensor:
        """Return x W^T + bias [rows, outputs] for x [rows, inputs]."""
        if x.codes.is_cuda:
            return self.scaled_product(x)
        rows = max(1, MAX_DEQUANTIZED["cpu"] // self.weight.shape[1])
        wide = x.codes.float()
        sums = torch.cat([F.linear(wide, part.float()) for part in self.weight.split(rows)], -1)
        return self.biased(sums.mul_(x.scales).mul_(self.scale).to(x.dtype))

    def scaled_product(self, x: RowsFP8) -> Tensor:
        """Return the product on a GPU; the bias is added by the same kernel where it can."""
        multiply = partial(
            torch._scaled_mm,
            x.codes,
            self.weight.t(),
            x.scales,
            self.scale[None],
            out_dtype=x.dtype,
            use_fast_accum=FAST_ACCUMULATION,
        )
        if self.bias is None or self._adds_bias_apart:
            return self.biased(multiply())
        try:
            return multiply(bias=self.bias)
        except RuntimeError as error:
            # cuBLASLt 13 has no kernel with a bias for few rows of 8,960 numbers on an H100
            if "CUBLAS_STATUS_NOT_SUPPORTED" not in str(error):
                raise
            self._adds_bias_apart = True
            return self.biased(multiply())


class Linear4(QuantizedLinear):
    """4 bits, with a scale and an offset for each group of weights along the inputs."""

    group: int
    weight: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor, group: int) -> None:
        super().__init__()
        self.group = group
        parts = [quantize_int4(part.float(), group) for part in split_rows(weight)]
        self.register_buffer("weight", torch.cat([pack_int4(codes, group) for codes, _ in parts]))
        scales = torch.cat([scale for _, scale in parts])
        self.register_buffer("scales", scales.transpose(0, 1).contiguous())

    def product(self, x: Tensor) -> Tensor:
        """Return x W^T + bias [rows, outputs] for x [rows, inputs]."""
        if x.device.type != "cpu":
            return product_4_bits(x, self.weight, self.scales, self.group, self.bias)
        out = KERNELS._weight_int4pack_mm_for_cpu(
            x.bfloat16(), self.weight, self.group, self.scales
        )
        return self.biased(out.to(x.dtype))


def reads_fp8(*layers: nn.Module | None) -> bool:
    """Return whether all of the layers take rows in FP8."""
    return all(isinstance(layer, LinearFP8) for layer in layers)


def after_activation(linear: nn.Module, x: Tensor, activation: Activation) -> Tensor:
    """Return linear(activation(x)); FP8 rows are quantized as they are activated."""
    if isinstance(linear, LinearFP8) and activation is GELU_TANH:
        product = linear.product(x.reshape(-1, x.shape[-1]), gelu=True)
        return product.reshape(*x.shape[:-1], -1)
    out: Tensor = linear(activation(x))
    return out


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


def pack_int4(codes: Tensor, group: int) -> Tensor:
    """Pack int32 codes [outputs, inputs] from 0 to 15 in the order that the kernel reads."""
    if codes.device.type != "cpu":
        return pack_halves(codes, group)
    packed: Tensor = KERNELS._convert_weight_to_int4pack_for_cpu(codes, 1)
    return packed


def quantized(weight: Tensor, kind: Format, dtype: torch.dtype) -> QuantizedLinear:
    """Return the quantized layer of `weight` [outputs, inputs], for inputs of `dtype`."""
    outputs, inputs = weight.shape
    if kind == "fp8" and fits_fp8(outputs, inputs):
        return LinearFP8(weight)
    group = group_size(outputs, inputs) if kind == "int4" else None
    return Linear8(weight, dtype) if group is None else Linear4(weight, group)


def fits_fp8(outputs: int, inputs: int) -> bool:
    """Return whether FP8 products take a layer; others get int8."""
    return outputs % 16 == 0 and inputs % 16 == 0


def group_size(outputs: int, inputs: int) -> int | None:
    """Return the number of weights that share a scale in int4; None for a layer that gets int8.

    Layers that the 4-bit kernels do not support get int8: inputs must be a multiple of 32,
    outputs of 16.
    """
    group = next((size for size in GROUP_SIZES if inputs % size == 0), None)
    return group if outputs % 16 == 0 else None


def quantized_bytes(outputs: int, inputs: int, kind: Format, dtype: torch.dtype) -> int:
    """Return the bytes that `quantized` needs for a weight [outputs, inputs]."""
    if kind == "fp8" and fits_fp8(outputs, inputs):
        return outputs * (inputs + torch.float32.itemsize)
    group = group_size(outputs, inputs) if kind == "int4" else None
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
    if quantize not in QUANTIZATIONS:
        raise NVILAError(
            f"Unknown quantization {quantize!r}: use {', '.join(map(repr, QUANTIZATIONS))}, or "
            "omit it for full precision."
        )
    if quantize in ("fp8", "fp8-vision"):
        require_fp8(device, dtype)
        check_kernel("fp8", device, dtype)
        check_kernel("int8", device, dtype)  # layers that FP8 products do not take
        language: Format | None = "fp8" if quantize == "fp8" else None
        return Precision(language, vision="fp8", projector="fp8")
    language = "int4" if quantize == "int4" else "int8"
    for kind in dict.fromkeys((language, "int8")):  # they differ by processor and by version
        check_kernel(kind, device, dtype)
    return Precision(language, vision="int8")


def require_fp8(device: torch.device, dtype: torch.dtype) -> None:
    """Raise NVILAError where a device does not multiply FP8."""
    if device.type != "cuda":
        raise NVILAError(f"FP8 needs a GPU, and the device is {device}: set quantize to int8.")
    properties = torch.cuda.get_device_properties(device)
    if (properties.major, properties.minor) < FP8_CAPABILITY:
        raise NVILAError(
            f"FP8 needs a GPU of compute capability 8.9 or more (Ada, Hopper, Blackwell), and "
            f"{properties.name} has {properties.major}.{properties.minor}: set quantize to int8."
        )
    if dtype != torch.bfloat16:
        raise NVILAError(
            f"FP8 computes in bfloat16, not in {str(dtype).removeprefix('torch.')}: set dtype to "
            "auto or bfloat16."
        )


def check_kernel(kind: Format, device: torch.device, dtype: torch.dtype) -> None:
    """Multiply small quantized matrices as the model will, with every tiling of the kernels.

    Where Triton's kernels fail, they are turned off with a warning, and PyTorch must do.

    Raises:
        NVILAError: the kernel fails or its product is wrong.
    """
    problem = product_problem(kind, device, dtype)
    if problem and kernels_for(torch.empty(0, device=device)) is not None:
        Switch.turn_off(device, f"a product in {kind}: {problem}")
        problem = product_problem(kind, device, dtype)
    if problem:
        raise NVILAError(
            f"Weights in {kind} do not work on {device} in {str(dtype).removeprefix('torch.')}"
            f" ({problem}): omit quantize, or use another device or dtype."
        )


TRIED = (
    (3, 64),
    (32, 64),
    (64, 64),
    (128, 64),
    (128, MANY_OUTPUTS // 2),
    (128, MANY_OUTPUTS),
    (FEW_ROWS, MANY_OUTPUTS),
    (FEW_ROWS + 1, 64),
)
"""Rows and outputs of the products that are tried: one for each tiling, and one of more rows."""

TRIED_IN_FP8 = ((3, 64), (100, 64))


@torch.inference_mode()
def product_problem(kind: Format, device: torch.device, dtype: torch.dtype) -> str:
    """Return what is wrong with the small products that a format is tried with, or nothing."""
    try:
        for rows, outputs in TRIED_IN_FP8 if kind == "fp8" else TRIED:
            weight = torch.linspace(-1, 1, outputs * 128, device=device).sin().reshape(-1, 128)
            x = torch.linspace(-1, 1, rows * 128, device=device).cos().reshape(-1, 128)
            layer = quantized(weight, kind, dtype)
            inputs: Inputs = [("rows", x.to(dtype), x)]
            if kind == "fp8":
                inputs += inputs_in_fp8(x, dtype)
            for name, given, exact in inputs:
                expected = exact @ weight.T
                if not (layer(given).float() - expected).norm() < 0.1 * expected.norm():
                    return f"the product of {name} is wrong"
    except Exception as error:  # which exception a kernel raises depends on the platform
        return first_line(error)
    return ""


def inputs_in_fp8(x: Tensor, dtype: torch.dtype) -> Inputs:
    """Return what the steps before a product give it in FP8, if kernels do, for float32 x."""
    low, ones = x.to(dtype), torch.ones(x.shape[-1], dtype=dtype, device=x.device)
    normed = 2 * x * torch.rsqrt((2 * x).square().mean(-1, keepdim=True) + 1e-6)
    found: Inputs = [
        ("a norm", add_rms_norm(low, low, ones, 1e-6, fp8=True)[0], normed),
        ("a gate", gated(torch.cat([low, low], 1), F.silu, fp8=True), F.silu(x) * x),
    ]
    if fp8_kernels(low) is not None:
        parts = torch.stack([x, x.flip(1)]).unflatten(2, (2, -1))
        log_sums = torch.tensor([1.0, -1.0], device=x.device)[:, None, None].repeat(1, len(x), 2)
        tiles = torch.ones(len(x), 4, dtype=torch.int32, device=x.device)
        tiles[:, 0] = torch.arange(len(x))
        joined = joined_splits(parts, log_sums, tiles, low)
        found.append(("attention", joined, 0.8 * x + 0.2 * x.flip(1)))
    return found


def weight_bytes(module: nn.Module) -> int:
    """Return the bytes of a module's parameters and buffers; shared tensors count once."""
    tensors = {id(t): t for t in (*module.parameters(), *module.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())
