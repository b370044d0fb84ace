"""Rows in FP8 for products of `LinearFP8`: quantized by themselves, or by the step before.

One Triton launch writes them on a GPU, PyTorch elsewhere. All of them are equal, whichever kernel
wrote them, but for the order in which `joined_splits` adds.
"""

from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from nvila_core.models.activations import GELU_TANH
from nvila_core.models.kernels import kernels_for, power_of_two

FP8 = torch.float8_e4m3fn
MAX_CODE = 448.0
"""Largest number of FP8 (e4m3)."""

MIN_LARGEST = 1e-12
"""What the largest number of a row counts as at least, so that a row of zeros has a scale."""

WHOLE_ROW = 8192
"""Numbers of a row that one program holds at once; longer rows are read twice, in parts."""

PART_OF_ROW = 2048
PART_OF_GATED_ROW = 4096
"""The same for a gate of few rows."""

MAX_FEW_ROWS = 64
"""Rows at most that leave multiprocessors idle, so that each may have one to itself."""

JOINED_AT_ONCE = 2**14
"""Numbers of the parts of a row that a pass of `joined_splits` adds."""


class RowsFP8(NamedTuple):
    """Rows in FP8: codes * scales are the numbers.

    Attributes:
        codes: float8 e4m3 [rows, size].
        scales: float32 [rows, 1]; NaN where a row has NaN or infinity.
        dtype: of the rows before, and of products with them.
    """

    codes: Tensor
    scales: Tensor
    dtype: torch.dtype


def empty_rows(rows: int, size: int, like: Tensor) -> RowsFP8:
    """Return rows to be written by a kernel, on the device of a tensor, which gives the dtype."""
    codes = torch.empty(rows, size, dtype=FP8, device=like.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=like.device)
    return RowsFP8(codes, scales, like.dtype)


def quantize_rows(x: Tensor, gelu: bool = False) -> RowsFP8:
    """Return x in FP8.

    Args:
        x: [rows, size].
        gelu: quantize GELU(x), by the tanh approximation, instead of x.
    """
    kernels = fp8_kernels(x)
    if kernels is not None:
        size = x.shape[-1]
        block = power_of_two(size) if size <= WHOLE_ROW else PART_OF_ROW
        warps = 2 if len(x) > MAX_FEW_ROWS else 8
        return _launch(kernels, x, size, block, warps, gelu=gelu)
    wide = (GELU_TANH(x) if gelu else x).float()
    high = wide.abs().amax(1, keepdim=True).clamp(min=MIN_LARGEST)
    codes = (wide * (MAX_CODE / high)).clamp(-MAX_CODE, MAX_CODE).to(FP8)
    return RowsFP8(codes, (high / MAX_CODE).masked_fill(high.isinf(), float("nan")), x.dtype)


def gated_rows(gate_up: Tensor) -> RowsFP8 | None:
    """Return silu(gate) * up in FP8 [rows, size]; None where PyTorch computes.

    Args:
        gate_up: [rows, 2 * size]: gate, then up.
    """
    kernels = fp8_kernels(gate_up)
    if kernels is None:
        return None
    size = gate_up.shape[-1] // 2
    few = len(gate_up) <= MAX_FEW_ROWS
    block = min(power_of_two(size), PART_OF_GATED_ROW if few else PART_OF_ROW)
    return _launch(kernels, gate_up, size, block, 16 if few else 4, gated=True)


def joined_splits(partial: Tensor, log_sums: Tensor, tiles: Tensor, like: Tensor) -> RowsFP8:
    """Return attention whose keys were divided, in FP8 [rows, heads * head size], by the kernel.

    Rows without a tile are not written.

    Args:
        partial: float32 [splits, rows, heads, head size], the attention to each part of the keys.
        log_sums: float32 [splits, rows, heads], binary logarithms of the sums; -inf: no key.
        tiles: int32 [T, 4], of one row each; see `kernels.attention`.
        like: [rows, heads, head size] in the dtype to which the rows are rounded first.
    """
    from nvila_core.kernels.attention import combine_splits_to_fp8

    splits, rows, heads, head_dim = partial.shape
    found = empty_rows(rows, heads * head_dim, like)
    padded = power_of_two(heads * head_dim)
    combine_splits_to_fp8[(len(tiles),)](
        partial,
        log_sums,
        found.codes,
        found.scales,
        tiles,
        like,
        rows,
        heads,
        head_dim,
        padded,
        splits,
        max(1, min(splits, JOINED_AT_ONCE // padded)),
        num_warps=16,
    )
    return found


def fp8_kernels(x: Tensor) -> ModuleType | None:
    """Return the kernels of `nvila_core.kernels.fp8`, or None where PyTorch computes."""
    return kernels_for(x, "fp8")


def _launch(
    kernels: ModuleType,
    x: Tensor,
    size: int,
    block: int,
    warps: int,
    *,
    gelu: bool = False,
    gated: bool = False,
) -> RowsFP8:
    x = x if x.stride(-1) == 1 else x.contiguous()
    found = empty_rows(len(x), size, x)
    kernels.rows_to_fp8[(len(x),)](
        x, found.codes, found.scales, x.stride(0), size, block, gelu, gated, num_warps=warps
    )
    return found
