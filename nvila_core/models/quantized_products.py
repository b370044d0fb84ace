"""Products of rows with weights in 8 or 4 bits on a GPU, by Triton."""

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_core.models.kernels import kernels_for

FEW_ROWS = {8: 64, 4: 32}
"""Rows at most for which weights in 8 or 4 bits are widened in registers; for more, in memory.

On an H100 they were multiplied 1.5 to 8 times as fast as by weights widened in memory."""

TILE_GROUPS = 4
"""Groups of weights in 4 bits that a pass multiplies."""


@dataclass(frozen=True)
class ProductTiling:
    """Sizes of the programs of a product: rows, outputs, inputs of a pass, warps, stages."""

    rows: int
    outputs: int
    inputs: int
    warps: int
    stages: int


def tiling_of(rows: int, dtype: torch.dtype) -> ProductTiling:
    """Return the fastest tiling on an H100 for a number of rows."""
    stages = 2 if dtype == torch.float32 else 4
    if rows <= 16:
        return ProductTiling(16, 32, 256, 4, stages)
    if rows <= 32:
        return ProductTiling(32, 32, 128, 4, stages)
    return ProductTiling(64, 32, 128, 4, stages)


def product_8_bits(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor | None:
    """Return x (weight * scale)^T + bias [rows, outputs]; None for many rows or without kernels.

    Args:
        x: [rows, inputs].
        weight: int8 [outputs, inputs].
        scale: [outputs].
        bias: [outputs].
    """
    kernels = linear_kernels(x)
    if kernels is None or len(x) > FEW_ROWS[8]:
        return None
    x = x if x.stride(-1) == 1 else x.contiguous()
    outputs, inputs = weight.shape
    out = x.new_empty(len(x), outputs)
    tiling = tiling_of(len(x), x.dtype)
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
    if kernels is None or len(x) > FEW_ROWS[4]:
        return F.linear(x, widened_4_bits(weight, scales, group, x.dtype), bias)
    x = x if x.stride(-1) == 1 else x.contiguous()
    outputs, inputs = len(weight), 2 * weight.shape[1]
    out = x.new_empty(len(x), outputs)
    tiling = tiling_of(len(x), x.dtype)
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
        TILE_GROUPS,
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


def linear_kernels(x: Tensor) -> ModuleType | None:
    """Return the kernels of `nvila_core.kernels.linear`, or None where PyTorch computes."""
    return kernels_for(x, "linear")
