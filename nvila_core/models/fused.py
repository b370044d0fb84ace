"""The steps between a decoder's matrix products: one Triton launch on a GPU, PyTorch elsewhere."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_core.models.activations import Activation
from nvila_core.models.fp8_rows import RowsFP8, empty_rows, fp8_kernels, gated_rows
from nvila_core.models.kernels import kernels_for, power_of_two

SILU_BLOCK = 1024
"""Elements of one program."""


def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float, fp8: bool = False
) -> tuple[Tensor | RowsFP8, Tensor]:
    """Return the root mean square norm of x + residual, times `weight`, and that sum.

    Args:
        x: [N, size].
        residual: [N, size] in the same dtype; None: the sum is x.
        weight: [size].
        eps: added to the mean square.
        fp8: whether the product that follows takes the norm in FP8; PyTorch leaves that to it.
    """
    if (kernels := kernels_for(x)) is not None:
        size = x.shape[-1]
        x = x if x.stride(-1) == 1 else x.contiguous()
        total = x if residual is None else torch.empty_like(residual)
        rows = empty_rows(len(x), size, x) if fp8 and fp8_kernels(x) is not None else None
        normed = x.new_empty(x.shape) if rows is None else rows.codes
        padded = power_of_two(size)
        kernels.sum_and_norm[(len(x),)](
            x,
            residual if residual is not None else x,
            weight,
            total,
            normed,
            weight if rows is None else rows.scales,
            eps,
            x.stride(0),
            size,
            padded,
            residual is not None,
            rows is not None,
            num_warps=8 if padded > 2048 else 4,
        )
        return normed if rows is None else rows, total
    total = x if residual is None else x + residual
    if x.dtype is torch.float32:
        length = torch.linalg.vector_norm(total, 2, -1, True)
        scale = length.square_().div_(total.shape[-1]).add_(eps).rsqrt_()
        return (total * scale).mul_(weight), total
    wide = total.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype), total


def gated(gate_up: Tensor, activation: Activation, fp8: bool = False) -> Tensor | RowsFP8:
    """Return activation(gate) * up [N, size] of the two halves of `gate_up` [N, 2 * size].

    With `fp8` the product that follows takes it in FP8; PyTorch leaves that to it.
    """
    if fp8 and activation is F.silu and (in_fp8 := gated_rows(gate_up)) is not None:
        return in_fp8
    if activation is F.silu and (kernels := kernels_for(gate_up)) is not None:
        gate_up = gate_up.contiguous()
        rows, size = len(gate_up), gate_up.shape[-1] // 2
        out = gate_up.new_empty(rows, size)
        programs = -(-out.numel() // SILU_BLOCK)
        kernels.silu_mul[(programs,)](gate_up, out, out.numel(), size, SILU_BLOCK)
        return out
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate).mul_(up)
