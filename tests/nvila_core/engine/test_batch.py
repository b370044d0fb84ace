"""Batches over the cache: each row attends to exactly its own sequence."""

import random

import pytest
import torch
from torch.nn import functional as F

from nvila_core.engine.batch import SequenceSlice
from nvila_core.engine.grouped_attention import GroupedAttention, GroupedBatch
from nvila_core.engine.kv_cache import KVCache
from nvila_core.engine.paged_attention import PagedDecode, PrefillChunk, SharedPrefixDecode
from nvila_core.models.rotation import Rotation

BLOCK, HEADS, KV_HEADS, SIZE = 16, 4, 2, 8


def make_cache(dtype: torch.dtype) -> KVCache:
    made = KVCache(
        num_layers=1,
        num_kv_heads=KV_HEADS,
        head_dim=SIZE,
        num_blocks=400,
        block_size=BLOCK,
        dtype=dtype,
        device=torch.device("cpu"),
    )
    made.keys[0].normal_()
    made.values[0].normal_()
    return made


@pytest.fixture(scope="module")
def cache() -> KVCache:
    torch.manual_seed(0)
    return make_cache(torch.float32)


def attended(
    cache: KVCache, rows: list[SequenceSlice]
) -> tuple[GroupedBatch, torch.Tensor, torch.Tensor]:
    """Return a batch, its attention, and the attention of every row computed alone."""
    batch = GroupedAttention(cache, HEADS).plan(rows)
    total = sum(r.count for r in rows)
    query = torch.randn(total, HEADS, SIZE)
    key, value = torch.randn(2, total, KV_HEADS, SIZE)
    rotation = Rotation(batch.positions, torch.linspace(1, 0.1, SIZE // 2), torch.float32)
    got = batch.attend(0, query, key, value, rotation, 0.3)
    query = rotation.rotate(query).transpose(0, 1)
    expected, at = torch.empty_like(got), 0
    for r in (rows[i] for i in batch.order):
        keys, values = (part[0, : r.end] for part in cache.read(0, torch.tensor([r.blocks])))
        for position in range(r.start, r.end):
            seen = slice(0, position + 1)
            expected[at] = F.scaled_dot_product_attention(
                query[None, :, at : at + 1],
                keys[seen].transpose(0, 1)[None],
                values[seen].transpose(0, 1)[None],
                scale=0.3,
                enable_gqa=True,
            )[0, :, 0]
            at += 1
    return batch, got, expected


def test_rows_with_a_long_shared_prefix_read_it_once(cache: KVCache) -> None:
    # Given five sequences on one clip of 40 blocks, which end differently, and two others
    prefix = list(range(40))
    rows = [
        SequenceSlice(640 + 7 * n, 1, [*prefix, *range(50 + 5 * n, 55 + 5 * n)]) for n in range(5)
    ]
    rows.insert(2, SequenceSlice(600, 1, list(range(100, 140))))
    rows.append(SequenceSlice(30, 1, [140, 141]))

    # When they are one step
    batch, got, expected = attended(cache, rows)

    # Then the five share a prefix, and each attends to exactly its own sequence
    shared = [part for part in batch.parts if isinstance(part, SharedPrefixDecode)]
    assert [part.shared_blocks.shape for part in shared] == [(1, 40)]
    assert sorted(batch.order) == list(range(7))
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_a_shared_prefix_in_bfloat16_is_as_exact_as_pytorchs_attention() -> None:
    # Given four sequences that share 60 blocks in bfloat16
    torch.manual_seed(3)
    held = make_cache(torch.bfloat16)
    ends = [61 * BLOCK + 5 * n for n in range(4)]
    rows = [
        SequenceSlice(end - 1, 1, [*range(60), 60 + 2 * n, 61 + 2 * n])
        for n, end in enumerate(ends)
    ]
    batch = GroupedAttention(held, HEADS).plan(rows)
    (part,) = batch.parts
    assert isinstance(part, SharedPrefixDecode)
    query = 2 * torch.randn(KV_HEADS, HEADS // KV_HEADS, 4, SIZE).to(torch.bfloat16)

    # When each attends together with the others, and alone
    together = part.attend(query, held, 0, 0.7)

    def alone(dtype: torch.dtype) -> torch.Tensor:
        found = []
        for at, index in enumerate(batch.order):
            keys, values = held.read(0, torch.tensor([rows[index].blocks]))
            seen = slice(0, ends[index])
            found.append(
                F.scaled_dot_product_attention(
                    query[None, :, :, at].to(dtype),
                    keys[:, seen].transpose(1, 2).to(dtype),
                    values[:, seen].transpose(1, 2).to(dtype),
                    scale=0.7,
                ).flatten(1, 2)
            )
        return torch.cat(found)

    # Then it is no further from the exact result than PyTorch is
    exact = alone(torch.float64)
    error, usual = (
        (found.double() - exact).pow(2).mean().sqrt() for found in (together, alone(torch.bfloat16))
    )
    assert together.dtype is torch.bfloat16
    assert 0 < error < 1.2 * usual


def test_sequences_with_a_short_shared_prefix_are_grouped_by_length(cache: KVCache) -> None:
    # Given a shared prefix that is too short to be worth it, and different lengths
    rows = [
        SequenceSlice(BLOCK * blocks - 3, 1, [0, 1, *range(10 * n + 10, 10 * n + 8 + blocks)])
        for n, blocks in enumerate((3, 9, 4, 8, 3))
    ]

    # When they are one step
    batch, got, expected = attended(cache, rows)

    # Then none is padded to more than twice its own
    assert [type(part) for part in batch.parts] == [PagedDecode, PagedDecode]
    assert [part.rows for part in batch.parts] == [slice(0, 3), slice(3, 5)]
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("seed", range(8))
def test_any_mixture_attends_as_every_row_alone(cache: KVCache, seed: int) -> None:
    # Given chunks and single rows of sequences that branch off from one another at random
    draw = random.Random(seed)
    torch.manual_seed(seed)
    free = list(range(400))
    draw.shuffle(free)
    tables: list[list[int]] = [[]]
    rows = []
    for _ in range(8):
        parent = draw.choice(tables)
        kept = parent[: draw.randint(0, len(parent))]
        blocks = kept + [free.pop() for _ in range(draw.randint(1, 40))]
        tables.append(blocks)
        new = draw.choice((1, 1, 1, draw.randint(2, BLOCK)))
        end = draw.randint(len(kept) * BLOCK + new, len(blocks) * BLOCK)
        rows.append(SequenceSlice(end - new, new, blocks))

    # When they are one step
    batch, got, expected = attended(cache, rows)

    # Then every row attends to exactly its own sequence, up to itself
    assert sum(isinstance(part, PrefillChunk) for part in batch.parts) == sum(
        r.count > 1 for r in rows
    )
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
