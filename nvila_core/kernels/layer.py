"""The steps of a decoder layer between its matrix products, each in one launch.

They compute in float32 and round where PyTorch rounds.
"""

import triton
import triton.language as tl

from nvila_core.kernels.fp8 import store_row


@triton.jit
def sum_and_norm(
    x,
    residual,
    weight,
    total,
    normed,
    scales,
    eps,
    row_stride,
    SIZE: tl.constexpr,  # noqa: N803
    PADDED_SIZE: tl.constexpr,  # noqa: N803
    ADD: tl.constexpr,  # noqa: N803
    FP8: tl.constexpr,  # noqa: N803
):
    """Write `total` = x + residual, and `normed` = its root mean square norm times `weight`.

    The grid is [rows]. All are [rows, SIZE] with rows of SIZE, but x with `row_stride`; `weight` is
    [SIZE]. Without ADD there is no residual, and `total` is not written. With FP8 `normed` is codes
    in float8 e4m3, and `scales` float32 [rows], as `fp8.rows_to_fp8` writes them; without it there
    are no scales.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, PADDED_SIZE)
    inside = at < SIZE
    value = tl.load(x + row * row_stride + at, mask=inside, other=0.0)
    if ADD:
        value = value.to(tl.float32) + tl.load(
            residual + row * SIZE + at, mask=inside, other=0.0
        ).to(tl.float32)
        value = value.to(x.dtype.element_ty)  # rounded, as the next residual is
        tl.store(total + row * SIZE + at, value, mask=inside)
    wide = value.to(tl.float32)
    wide = wide * tl.rsqrt(tl.sum(wide * wide, 0) / SIZE + eps)
    scale = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    scaled = wide.to(x.dtype.element_ty).to(tl.float32) * scale
    if FP8:
        scaled = scaled.to(x.dtype.element_ty).to(tl.float32)
        store_row(normed + row * SIZE, scales + row, scaled, at, inside)
    else:
        tl.store(normed + row * SIZE + at, scaled, mask=inside)


@triton.jit(do_not_specialize=["count"])
def silu_mul(
    gate_up,
    out,
    count,
    SIZE: tl.constexpr,  # noqa: N803
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Write silu(gate) * up [rows, SIZE] of `gate_up` [rows, 2 * SIZE].

    The grid is [rows * SIZE / BLOCK]; `count` is rows * SIZE.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    place = at // SIZE * (2 * SIZE) + at % SIZE
    gate = tl.load(gate_up + place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + place + SIZE, mask=inside, other=0.0).to(tl.float32)
    active = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + at, active * up, mask=inside)


@triton.jit
def rotate_and_store(
    query,
    key,
    value,
    keys,
    values,
    positions,
    slots,
    damaged,
    inv_freq,
    query_stride,
    key_stride,
    HEADS: tl.constexpr,  # noqa: N803
    KV_HEADS: tl.constexpr,  # noqa: N803
    HALF: tl.constexpr,  # noqa: N803
    PADDED_HEADS: tl.constexpr,  # noqa: N803
    PADDED_KV_HEADS: tl.constexpr,  # noqa: N803
    PADDED_HALF: tl.constexpr,  # noqa: N803
):
    """Rotate one row by its position: queries in place, keys into the cache.

    Values go into the cache as they are. The grid is [rows, 3]: queries, keys, values.

    Args:
        query: [rows, HEADS, 2 * HALF] with `query_stride` between rows.
        key, value: [rows, KV_HEADS, 2 * HALF] with `key_stride` between rows.
        keys, values: [slots, KV_HEADS, 2 * HALF].
        positions: int32 [rows].
        slots: int32 [rows]: where the row goes; -1: nowhere.
        damaged: int32 [rows]; set to 1 where a key or value is not finite.
        inv_freq: float32 [HALF]: radians a position.
        PADDED_HEADS, PADDED_KV_HEADS, PADDED_HALF: the sizes as powers of two.
    """
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dim = tl.arange(0, PADDED_HALF)
    angle = tl.load(positions + row).to(tl.float32) * tl.load(
        inv_freq + dim, mask=dim < HALF, other=0.0
    )
    cos, sin = tl.cos(angle)[None, :], tl.sin(angle)[None, :]
    # Triton gives a name one shape in both branches: those of the first have names of their own.
    if part == 0:
        q_head = tl.arange(0, PADDED_HEADS)
        q_inside = (q_head < HEADS)[:, None] & (dim < HALF)[None, :]
        q_place = query + row * query_stride + q_head[:, None] * (2 * HALF) + dim[None, :]
        q_first = tl.load(q_place, mask=q_inside, other=0.0).to(tl.float32)
        q_second = tl.load(q_place + HALF, mask=q_inside, other=0.0).to(tl.float32)
        tl.store(q_place, q_first * cos - q_second * sin, mask=q_inside)
        tl.store(q_place + HALF, q_second * cos + q_first * sin, mask=q_inside)
    else:
        slot = tl.load(slots + row).to(tl.int64)
        head = tl.arange(0, PADDED_KV_HEADS)
        inside = (head < KV_HEADS)[:, None] & (dim < HALF)[None, :]
        place = head[:, None] * (2 * HALF) + dim[None, :]
        if part == 1:
            source, target = key, keys
        else:
            source, target = value, values
        source += row * key_stride
        first = tl.load(source + place, mask=inside, other=0.0)
        second = tl.load(source + place + HALF, mask=inside, other=0.0)
        if part == 1:
            a, b = first.to(tl.float32), second.to(tl.float32)
            first = (a * cos - b * sin).to(first.dtype)
            second = (b * cos + a * sin).to(second.dtype)
        # A maximum would ignore NaN, and comparisons with it are false.
        finite = (tl.abs(first.to(tl.float32)) < float("inf")) & (
            tl.abs(second.to(tl.float32)) < float("inf")
        )
        if tl.min(tl.min(finite.to(tl.int32), 1), 0) == 0:
            tl.store(damaged + row, 1)
        if slot >= 0:
            target += slot * KV_HEADS * (2 * HALF)
            tl.store(target + place, first, mask=inside)
            tl.store(target + place + HALF, second, mask=inside)
