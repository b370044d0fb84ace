"""The steps between a decoder's matrix products: one Triton launch on a GPU, PyTorch elsewhere."""

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_core.models.activations import Activation
from nvila_core.models.kernels import kernels_for, power_of_two

SILU_BLOCK = 1024
"""Elements of one program."""


def add_rms_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the root mean square norm of x + residual, times `weight`, and that sum.

    Args:
        x: [N, size].
        residual: [N, size] in the same dtype; None: the sum is x.
        weight: [size].
        eps: added to the mean square.
    """
    if (kernels := kernels_for(x)) is not None:
        size = x.shape[-1]
        x = x if x.stride(-1) == 1 else x.contiguous()
        total = x if residual is None else torch.empty_like(residual)
        normed = x.new_empty(x.shape)
        padded = power_of_two(size)
        kernels.sum_and_norm[(len(x),)](
            x,
            residual if residual is not None else x,
            weight,
            total,
            normed,
            eps,
            x.stride(0),
            size,
            padded,
            residual is not None,
            num_warps=8 if padded > 2048 else 4,
        )
        return normed, total
    total = x if residual is None else x + residual
    wide = total.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype), total


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """Return activation(gate) * up [N, size] of the two halves of `gate_up` [N, 2 * size]."""
    if activation is F.silu and (kernels := kernels_for(gate_up)) is not None:
        rows, size = len(gate_up), gate_up.shape[-1] // 2
        out = gate_up.new_empty(rows, size)
        programs = -(-out.numel() // SILU_BLOCK)
        kernels.silu_mul[(programs,)](gate_up, out, out.numel(), size, SILU_BLOCK)
        return out
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate) * up
