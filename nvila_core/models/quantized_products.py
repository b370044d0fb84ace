"""Products of rows with weights in 8 or 4 bits on a GPU, by Triton."""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_core.models.kernels import kernels_for

FEW_ROWS = 256
"""Rows at most for which weights in 8 or 4 bits are widened in registers; for more, in memory.

The largest decode step with a graph has as many (`engine.decode_graphs.ROW_BUCKETS`), because
widening in memory is one more launch for each product of a step. On an H100 widening in registers
was 1.5 to 8 times as fast for up to 64 rows in int8 and 32 in int4; for more it was not measured.
"""

PROGRAMS = 48
"""Programs at least of a product of more than 64 rows, if programs of 32 outputs are as many.

The fastest product of up to 64 rows with 1,536 outputs has as many on an H100."""

MANY_OUTPUTS = 128 * PROGRAMS
"""Outputs at least of which programs with 128 outputs and all rows each are enough."""


@dataclass(frozen=True)
class ProductTiling:
    """Sizes of the programs of a product.

    Attributes:
        rows, outputs: of a program.
        inputs: that a pass multiplies with weights in 8 bits.
        groups: of weights in 4 bits that a pass multiplies.
        warps: of a program.
        stages: passes whose numbers are loaded or multiplied at the same time.
    """

    rows: int
    outputs: int
    inputs: int
    groups: int
    warps: int
    stages: int


def tiling_of(
    rows: int, outputs: int, dtype: torch.dtype, capability: tuple[int, int]
) -> ProductTiling:
    """Return the tiling of a product.

    Those up to 64 rows were the fastest on an H100 (in int4 up to 32); the others are computed.

    One program multiplies all rows of its outputs, so that no other widens the same weights: up to
    64 rows in float32, which has no tensor cores and takes more registers; in 16 bits up to 128
    rows, and up to 256 with `MANY_OUTPUTS` or more. With fewer outputs multiprocessors would be
    idle, so two programs share the rows.

    In programs of 64 outputs or more one thread widens a weight: the tensor cores of compute
    capability 9 and 10 multiply 64 at once. In other programs of 64 rows or more the warps share
    the rows, and each of them widens all weights of the program.

    Args:
        rows: of the product.
        outputs: of the product.
        dtype: of the rows.
        capability: compute capability of the GPU.
    """
    stages = 2 if dtype == torch.float32 else 4
    if rows <= 16:
        return ProductTiling(16, 32, 256, 4, 4, stages)
    if rows <= 32:
        return ProductTiling(32, 32, 128, 4, 4, stages)
    if dtype == torch.float32:
        return ProductTiling(64, 32, 128, 2, 8, stages)
    if rows <= 64:
        return ProductTiling(64, 32, 128, 2, 4, stages)
    multiplies_64 = capability[0] in (9, 10)
    if outputs >= MANY_OUTPUTS:
        all_rows, stages = (128, 4) if rows <= 128 else (256, 3)
        width, warps = (128, 8) if multiplies_64 else (32, 4)
        return ProductTiling(all_rows, width, 64, 1, warps, stages)
    enough = -(-outputs // 64) * -(-rows // 128) >= PROGRAMS
    return ProductTiling(128, 64 if multiplies_64 and enough else 32, 64, 1, 4, stages)


def product_8_bits(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return x (weight * scale)^T + bias [rows, outputs]; None for many rows or without kernels.

    Args:
        x: [rows, inputs].
        weight: int8 [outputs, inputs].
        scale: [outputs].
        bias: [outputs].
    """
    kernels = linear_kernels(x)
    if kernels is None or len(x) > FEW_ROWS:
        return None
    x = x if x.stride(-1) == 1 else x.contiguous()
    outputs, inputs = weight.shape
    out = x.new_empty(len(x), outputs)
    tiling = tiling_of(len(x), outputs, x.dtype, capability_of(x))
    kernels.multiply_8_bits[(-(-outputs // tiling.outputs), -(-len(x) // tiling.rows))](
        x,
        weight,
        scale,
        scale if bias is None else bias,
        out,
        len(x),
        x.stride(0),
        outputs,
        inputs,
        bias is not None,
        tiling.rows,
        tiling.outputs,
        tiling.inputs,
        not x.is_cuda,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    return out


def product_4_bits(
    x: Tensor, weight: Tensor, scales: Tensor, group: int, bias: Tensor | None
) -> Tensor:
    """Return x W^T + bias [rows, outputs] of weights in 4 bits.

    Args:
        x: [rows, inputs].
        weight: uint8 [outputs, inputs / 2]; see `pack_halves`.
        scales: bfloat16 [inputs / group, outputs, 2]: the step of a group, and code 8's value.
        group: weights of a group.
        bias: [outputs].
    """
    kernels = linear_kernels(x)
    if kernels is None or len(x) > FEW_ROWS:
        return F.linear(x, widened_4_bits(weight, scales, group, x.dtype), bias)
    x = x if x.stride(-1) == 1 else x.contiguous()
    outputs, inputs = len(weight), 2 * weight.shape[1]
    out = x.new_empty(len(x), outputs)
    tiling = tiling_of(len(x), outputs, x.dtype, capability_of(x))
    kernels.multiply_4_bits[(-(-outputs // tiling.outputs), -(-len(x) // tiling.rows))](
        x,
        weight,
        scales,
        scales if bias is None else bias,
        out,
        len(x),
        x.stride(0),
        outputs,
        inputs,
        group,
        bias is not None,
        tiling.rows,
        tiling.outputs,
        tiling.groups,
        not x.is_cuda,
        num_warps=tiling.warps,
        num_stages=tiling.stages,
    )
    return out


def pack_halves(codes: Tensor, group: int) -> Tensor:
    """Pack int32 codes [outputs, inputs] from 0 to 15 as uint8 [outputs, inputs / 2].

    The first half of each group is in the low bits, the second in the high bits.
    """
    low, high = codes.unflatten(1, (-1, 2, group // 2)).unbind(2)
    packed: Tensor = (high << 4 | low).to(torch.uint8)
    return packed.flatten(1)


def widened_4_bits(weight: Tensor, scales: Tensor, group: int, dtype: torch.dtype) -> Tensor:
    """Return the weights [outputs, inputs] of `product_4_bits` in a dtype."""
    outputs, inputs = len(weight), 2 * weight.shape[1]
    kernels = linear_kernels(weight)
    if kernels is not None:
        out = torch.empty(outputs, inputs, dtype=dtype, device=weight.device)
        tile = 64
        kernels.widen_4_bits[(-(-outputs // tile), inputs // group)](
            weight, scales, out, outputs, inputs, group, tile
        )
        return out
    halves = weight.unflatten(1, (-1, group // 2))
    codes = torch.cat([halves & 15, halves >> 4], dim=-1).float() - 8
    step, middle = scales.float().transpose(0, 1)[..., None].unbind(2)
    wide: Tensor = (codes * step + middle).flatten(1)
    return wide.to(dtype)


def capability_of(x: Tensor) -> tuple[int, int]:
    """Return the compute capability of a tensor's GPU; an H100's where Triton interprets."""
    if not x.is_cuda:
        return 9, 0
    found = torch.cuda.get_device_properties(x.device)
    return found.major, found.minor


def linear_kernels(x: Tensor) -> ModuleType | None:
    """Return the kernels of `nvila_core.kernels.linear`, or None where PyTorch computes."""
    return kernels_for(x, "linear")
