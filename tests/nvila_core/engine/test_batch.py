"""Batches over the cache: each row attends to exactly its own sequence."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from nvila_core.engine.batch import SequenceSlice
from nvila_core.engine.grouped_attention import GroupedAttention, GroupedBatch
from nvila_core.engine.kv_cache import KVCache
from nvila_core.engine.paged_attention import (
    PagedDecode,
    PrefillChunk,
    SharedPrefixDecode,
    SingleRows,
)
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
    qkv = torch.randn(total, HEADS + 2 * KV_HEADS, SIZE)
    query = qkv[:, :HEADS]
    rotation = Rotation(batch.positions, torch.linspace(1, 0.1, SIZE // 2), torch.float32)
    got = batch.attend(0, qkv.clone(), HEADS, rotation, 0.3)
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
    assert [part.prefix.length for part in shared] == [640]
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
    query = 2 * torch.randn(4, KV_HEADS, HEADS // KV_HEADS, SIZE).to(torch.bfloat16)

    # When each attends together with the others, and alone
    together = part.attend(query, held, 0, 0.7)

    def alone(dtype: torch.dtype) -> torch.Tensor:
        found = []
        for at, index in enumerate(batch.order):
            keys, values = held.read(0, torch.tensor([rows[index].blocks]))
            seen = slice(0, ends[index])
            found.append(
                F.scaled_dot_product_attention(
                    query[at : at + 1].to(dtype),
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


@pytest.mark.parametrize("threads", [2, 3])
def test_long_sequences_in_adjacent_blocks_are_read_one_by_one_where_threads_are_few(
    cache: KVCache, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Given two long sequences in adjacent blocks, two in others, and short ones
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    tables = [
        [*range(20)],
        [*range(40, 20, -1)],
        [*range(50, 65)],
        [*range(70, 84), 90],
        [100],
        [110, 111],
    ]
    rows = [SequenceSlice(BLOCK * len(blocks) - 5, 1, blocks) for blocks in tables]

    # When they are one step
    batch, got, expected = attended(cache, rows)

    # Then the first two are read by themselves, unless more threads than heads wait for work
    alone = [part for part in batch.parts if isinstance(part, SingleRows)]
    found = [[batch.order[n] for n in range(part.rows.start, part.rows.stop)] for part in alone]
    assert found == ([[0, 2]] if threads == 2 else [])
    assert all(stored.blocks is None for part in alone for stored in part.sequences)
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


class Sizes(TorchFunctionMode):
    """Notes how many queries and keys attention is computed for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, int]] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.seen.add((args[0].shape[2], args[1].shape[2]))
        return func(*args, **(kwargs or {}))


def chunks() -> Iterator[SequenceSlice]:
    """Yield chunks of each size of a step, at many places of a sequence of 96 blocks."""
    draw = random.Random(11)
    for count in range(2, 129):
        for _ in range(4):
            start = draw.randrange(96 * BLOCK - count)
            yield SequenceSlice(start, count, list(range(96)))


def sizes_of_chunks(dtype: torch.dtype) -> set[tuple[int, int]]:
    """Attend to each of `chunks` in a cache of `dtype`, and return the sizes that are computed."""
    held = make_cache(dtype)
    with Sizes() as sizes:
        for chunk in chunks():
            (part,) = GroupedAttention(held, HEADS).plan([chunk]).parts
            query = torch.zeros(chunk.count, KV_HEADS, HEADS // KV_HEADS, SIZE, dtype=dtype)
            assert part.attend(query, held, 0, 0.3).shape == (chunk.count, HEADS, SIZE)
    return sizes.seen


def test_chunks_of_any_size_need_few_compiled_kernels_in_bfloat16() -> None:
    # Given that PyTorch compiles kernels for each number of queries, from 64 on, and of keys in the
    # last part of 512, and keeps them all
    sizes = sizes_of_chunks(torch.bfloat16)

    compiled = {(queries, keys % 512) for queries, keys in sizes if queries >= 64}

    # Then of 97 sizes and 1500 places few remain: 6 numbers of queries and 8 of keys
    assert len(compiled) <= 48
    assert {queries for queries, _ in compiled} == {64, 96, 128, 160, 192, 256}
    assert {keys for _, keys in compiled} == set(range(0, 512, 64))


def test_chunks_in_float32_are_computed_as_they_are() -> None:
    group = HEADS // KV_HEADS

    sizes = sizes_of_chunks(torch.float32)

    assert sizes == {(group * chunk.count, chunk.end) for chunk in chunks()}


@pytest.mark.parametrize(("start", "count"), [(0, 32), (77, 33), (601, 127), (1000, 100)])
def test_padding_changes_no_row_of_a_chunk(start: int, count: int) -> None:
    # Given a chunk in bfloat16, in a cache whose free places hold other numbers
    torch.manual_seed(5)
    held = make_cache(torch.bfloat16)
    chunk = SequenceSlice(start, count, list(range(100, 200)))
    (part,) = GroupedAttention(held, HEADS).plan([chunk]).parts
    group = HEADS // KV_HEADS
    query = torch.randn(count, KV_HEADS, group, SIZE).to(torch.bfloat16)

    # When it attends with padding, and without
    padded = part.attend(query, held, 0, 0.7)

    def alone(dtype: torch.dtype) -> torch.Tensor:
        keys, values = (
            each[:, : chunk.end].transpose(1, 2).to(dtype)
            for each in held.read(0, torch.tensor([chunk.blocks]))
        )
        ends = torch.arange(start, chunk.end)[:, None]
        mask = torch.where(torch.arange(chunk.end) > ends, float("-inf"), 0.0).to(dtype)
        flat = query.permute(1, 2, 0, 3).reshape(1, KV_HEADS, group * count, SIZE).to(dtype)
        out = F.scaled_dot_product_attention(flat, keys, values, mask.repeat(group, 1), scale=0.7)
        return out.reshape(HEADS, count, SIZE).transpose(0, 1)

    # Then it is as close to the exact result as without
    exact = alone(torch.float64)
    error, usual = (
        (found.double() - exact).pow(2).mean().sqrt() for found in (padded, alone(torch.bfloat16))
    )
    assert padded.shape == exact.shape
    assert 0 < error < 1.2 * usual
