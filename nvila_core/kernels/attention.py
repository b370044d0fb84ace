"""Attention of rows of any number of sequences over keys and values in blocks.

One kernel serves chunks of prompts and single new rows. Its programs divide the rows into tiles: a
tile has consecutive rows of one sequence, and the query heads that share a key head. They follow
FlashAttention-2 (Dao 2023) and, where few rows have many keys, divide the keys too, as Flash-
Decoding does (Dao et al. 2023); `combine_splits` joins the parts, and `combine_splits_to_fp8` those
of a whole row for a product in FP8.
"""

import triton
import triton.language as tl

from nvila_core.kernels.fp8 import store_row

TILE_FIELDS = 4
"""int32 numbers of a tile: first row, rows, sequence, position of the first row."""


@triton.jit(do_not_specialize=["num_rows"])
def paged_attention(
    query,
    keys,
    values,
    out,
    partial,
    log_sums,
    tiles,
    tables,
    scale,
    row_stride,
    head_stride,
    table_stride,
    num_rows,
    HEADS: tl.constexpr,  # noqa: N803
    KV_HEADS: tl.constexpr,  # noqa: N803
    HEAD_DIM: tl.constexpr,  # noqa: N803
    PADDED_DIM: tl.constexpr,  # noqa: N803
    BLOCK_SIZE: tl.constexpr,  # noqa: N803
    TILE_ROWS: tl.constexpr,  # noqa: N803
    TILE_KEYS: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
    WIDEN: tl.constexpr,  # noqa: N803
):
    """Compute one tile's attention to one part of its sequence's keys, for one key head.

    The grid is [tiles, KV_HEADS, SPLITS].

    Args:
        query: [rows, HEADS, HEAD_DIM] with `row_stride` and `head_stride`.
        keys, values: [blocks, BLOCK_SIZE, KV_HEADS, HEAD_DIM].
        out: [rows, HEADS, HEAD_DIM]; written where SPLITS is 1.
        partial: float32 [SPLITS, rows, HEADS, HEAD_DIM]; written where SPLITS is more.
        log_sums: float32 [SPLITS, rows, HEADS]: binary logarithms of each part's sum; -inf: no key.
        tiles: int32 [tiles, 4]; a tile without rows computes nothing.
        tables: int32 [sequences, table_stride]: the blocks of each sequence.
        scale: factor of the scores, times log2(e).
        num_rows: rows of `partial` and `log_sums`.
        PADDED_DIM: HEAD_DIM as a power of two, at least 16.
        TILE_ROWS: queries of a tile: rows times heads that share a key head, or more.
        TILE_KEYS: keys of a pass.
        WIDEN: multiply in float32; the interpreter's products of bfloat16 are wrong.
    """
    tile, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(tiles + 4 * tile)
    count = tl.load(tiles + 4 * tile + 1)
    table = tables + tl.load(tiles + 4 * tile + 2).to(tl.int64) * table_stride
    position = tl.load(tiles + 4 * tile + 3)
    if count == 0:
        return

    group: tl.constexpr = HEADS // KV_HEADS
    lane = tl.arange(0, TILE_ROWS)
    dim = tl.arange(0, PADDED_DIM)
    row, head = lane // group, kv_head * group + lane % group
    used = row < count
    in_head = dim < HEAD_DIM
    at = (first_row + row).to(tl.int64)
    q = tl.load(
        query + (at * row_stride + head * head_stride)[:, None] + dim[None, :],
        mask=used[:, None] & in_head[None, :],
        other=0.0,
    )
    if WIDEN:
        q = q.to(tl.float32)

    end = position + count
    begin, stop = 0, end
    if SPLITS > 1:
        span = (end + SPLITS * TILE_KEYS - 1) // (SPLITS * TILE_KEYS) * TILE_KEYS
        begin = split * span
        stop = tl.minimum(begin + span, end)
    highest = tl.full([TILE_ROWS], float("-inf"), tl.float32)
    total = tl.full([TILE_ROWS], 0.0, tl.float32)
    acc = tl.full([TILE_ROWS, PADDED_DIM], 0.0, tl.float32)
    for start in range(begin, stop, TILE_KEYS):
        key = start + tl.arange(0, TILE_KEYS)
        inside = key < stop
        block = tl.load(table + key // BLOCK_SIZE, mask=inside, other=0)
        slot = (block * BLOCK_SIZE + key % BLOCK_SIZE) * KV_HEADS + kv_head
        k = tl.load(
            keys + slot[None, :] * HEAD_DIM + dim[:, None],
            mask=inside[None, :] & in_head[:, None],
            other=0.0,
        )
        v = tl.load(
            values + slot[:, None] * HEAD_DIM + dim[None, :],
            mask=inside[:, None] & in_head[None, :],
            other=0.0,
        )
        if WIDEN:
            k, v = k.to(tl.float32), v.to(tl.float32)
        scores = tl.dot(q, k, input_precision="ieee") * scale
        seen = inside[None, :] & (key[None, :] <= (position + row)[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        new_highest = tl.maximum(highest, tl.max(scores, 1))
        finite = tl.where(new_highest == float("-inf"), 0.0, new_highest)  # a row may see no key
        weights = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(highest - finite)
        total = total * shrink + tl.sum(weights, 1)
        acc = acc * shrink[:, None]
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision="ieee")
        highest = new_highest

    acc = acc / tl.where(total > 0.0, total, 1.0)[:, None]
    place = at * HEADS + head
    written = used[:, None] & in_head[None, :]
    if SPLITS == 1:
        tl.store(out + place[:, None] * HEAD_DIM + dim[None, :], acc, mask=written)
    else:
        place += split.to(tl.int64) * num_rows * HEADS
        tl.store(partial + place[:, None] * HEAD_DIM + dim[None, :], acc, mask=written)
        tl.store(log_sums + place, highest + tl.log2(total), mask=used)


@triton.jit(do_not_specialize=["num_rows"])
def combine_splits(
    partial,
    log_sums,
    out,
    tiles,
    num_rows,
    HEADS: tl.constexpr,  # noqa: N803
    HEAD_DIM: tl.constexpr,  # noqa: N803
    PADDED_DIM: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
):
    """Join the parts of `paged_attention` for one head of a tile of one row.

    The grid is [tiles, HEADS]; SPLITS is a power of two.
    """
    tile, head = tl.program_id(0), tl.program_id(1)
    row = tl.load(tiles + 4 * tile).to(tl.int64)
    if tl.load(tiles + 4 * tile + 1) == 0:
        return
    split = tl.arange(0, SPLITS).to(tl.int64)
    dim = tl.arange(0, PADDED_DIM)
    place = (split * num_rows + row) * HEADS + head
    log_sum = tl.load(log_sums + place)
    weight = tl.exp2(log_sum - tl.max(log_sum, 0))
    part = tl.load(
        partial + place[:, None] * HEAD_DIM + dim[None, :],
        mask=(log_sum > float("-inf"))[:, None] & (dim < HEAD_DIM)[None, :],
        other=0.0,
    )
    joined = tl.sum(part * weight[:, None], 0) / tl.sum(weight, 0)
    tl.store(out + (row * HEADS + head) * HEAD_DIM + dim, joined, mask=dim < HEAD_DIM)


@triton.jit(do_not_specialize=["num_rows"])
def combine_splits_to_fp8(
    partial,
    log_sums,
    codes,
    scales,
    tiles,
    like,
    num_rows,
    HEADS: tl.constexpr,  # noqa: N803
    HEAD_DIM: tl.constexpr,  # noqa: N803
    PADDED_SIZE: tl.constexpr,  # noqa: N803
    SPLITS: tl.constexpr,  # noqa: N803
    PASS_SPLITS: tl.constexpr,  # noqa: N803
):
    """Join the parts of `paged_attention` for a tile of one row, all heads, and write it in FP8.

    The grid is [tiles]; SPLITS and PASS_SPLITS, the parts that a pass joins, are powers of two.

    Args:
        codes, scales: float8 e4m3 [rows, HEADS * HEAD_DIM] and float32 [rows], as `rows_to_fp8` has
            them.
        like: any tensor of the dtype to which a row is rounded first, as `combine_splits` rounds.
        PADDED_SIZE: HEADS * HEAD_DIM as a power of two.
    """
    tile = tl.program_id(0)
    row = tl.load(tiles + 4 * tile).to(tl.int64)
    if tl.load(tiles + 4 * tile + 1) == 0:
        return
    size: tl.constexpr = HEADS * HEAD_DIM
    at = tl.arange(0, PADDED_SIZE)
    inside = at < size
    highest = tl.full([PADDED_SIZE], float("-inf"), tl.float32)
    total = tl.zeros([PADDED_SIZE], tl.float32)
    joined = tl.zeros([PADDED_SIZE], tl.float32)
    for first in range(0, SPLITS, PASS_SPLITS):
        split = (first + tl.arange(0, PASS_SPLITS)).to(tl.int64)
        place = (split * num_rows + row) * HEADS
        log_sum = tl.load(
            log_sums + place[:, None] + (at // HEAD_DIM)[None, :],
            mask=inside[None, :],
            other=0.0,
        )
        # the first part of a row has keys, so this is finite from the first pass on
        new_highest = tl.maximum(highest, tl.max(log_sum, 0))
        weight = tl.exp2(log_sum - new_highest[None, :])
        shrink = tl.exp2(highest - new_highest)
        part = tl.load(
            partial + place[:, None] * HEAD_DIM + at[None, :],
            mask=(log_sum > float("-inf")) & inside[None, :],
            other=0.0,
        )
        joined = joined * shrink + tl.sum(part * weight, 0)
        total = total * shrink + tl.sum(weight, 0)
        highest = new_highest
    value = (joined / total).to(like.dtype.element_ty).to(tl.float32)
    store_row(codes + row * size, scales + row, value, at, inside)
