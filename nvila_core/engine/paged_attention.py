"""Attention of a step's rows over the blocks of the cache, by what the rows have in common.

Each class has `rows`, the rows of the step that it covers, and `attend`, one layer's attention:
queries [N, kv heads, group, head size] to [N, heads, head size]. The query heads that share a key
head are queries of that head like any others, so no key is repeated.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_core.engine.kv_cache import KVCache, StoredSequence

MIN_COMPILED_QUERIES = 64
"""Queries of a key head from which on PyTorch compiles kernels for their number, in 16 bits."""

KEYS_STEP = 64
"""What the number of keys is then rounded up to a multiple of."""


@dataclass(frozen=True)
class SingleRows:
    """Sequences with one new position each, read one by one: no key is padded, few are copied."""

    rows: slice
    sequences: Sequence[StoredSequence]

    def attend(self, query: Tensor, cache: KVCache, layer: int, scale: float) -> Tensor:
        """Compute one layer's attention of `rows`."""
        out = []
        for one, stored in zip(query.split(1), self.sequences, strict=True):
            keys, values = cache.read_sequence(layer, stored)
            out.append(F.scaled_dot_product_attention(one, keys, values, scale=scale))
        return (out[0] if len(out) == 1 else torch.cat(out)).flatten(1, 2)


@dataclass(frozen=True)
class PagedDecode:
    """Sequences of similar length with one new position each, in one product."""

    rows: slice
    block_tables: Tensor
    """int64 [N, blocks]"""
    mask: Tensor
    """[N, 1, 1, positions], added to the scores."""

    def attend(self, query: Tensor, cache: KVCache, layer: int, scale: float) -> Tensor:
        """Compute one layer's attention of `rows`."""
        keys, values = cache.read(layer, self.block_tables)
        out = F.scaled_dot_product_attention(
            query, keys.transpose(1, 2), values.transpose(1, 2), self.mask, scale=scale
        )
        return out.flatten(1, 2)


@dataclass(frozen=True)
class SharedPrefixDecode:
    """Sequences with one new position each that share their first blocks: read once for all.

    All queries meet the shared keys in one matrix product, as in Hydragen (Juravsky et al. 2024).
    Everything is computed in float32, as PyTorch's fused attention does: scores rounded to bfloat16
    would add five times its error.
    """

    rows: slice
    prefix: StoredSequence
    block_tables: Tensor
    """int64 [N, blocks] after the shared ones."""
    mask: Tensor
    """[N, 1, 1, positions], added to the scores of the positions after the shared ones."""

    def attend(self, query: Tensor, cache: KVCache, layer: int, scale: float) -> Tensor:
        """Compute one layer's attention of `rows`."""
        count, kv_heads, group, size = query.shape
        shared_keys, shared_values = cache.read_sequence(layer, self.prefix)
        own_keys, own_values = cache.read(layer, self.block_tables)
        scaled = query.float() * scale
        flat = scaled.transpose(0, 1).reshape(kv_heads, count * group, size)
        shared = torch.bmm(flat, shared_keys[0].transpose(1, 2).float())
        own = scaled @ own_keys.permute(0, 2, 3, 1).float() + self.mask
        shared = shared.view(kv_heads, count, group, -1).transpose(0, 1)
        weights = torch.cat([shared, own], -1).softmax(-1)
        shared, own = weights.split([shared.shape[-1], own.shape[-1]], -1)
        shared = shared.transpose(0, 1).reshape(kv_heads, count * group, -1)
        among_shared = torch.bmm(shared, shared_values[0].float())
        among_shared = among_shared.view(kv_heads, count, group, -1).transpose(0, 1)
        out: Tensor = among_shared + own @ own_values.transpose(1, 2).float()
        return out.flatten(1, 2).to(query.dtype)


@dataclass(frozen=True)
class PrefillChunk:
    """Several new positions of one sequence."""

    rows: slice
    sequence: StoredSequence
    """With padding after its positions."""
    mask: Tensor
    """[queries, keys], added to the scores: group * N queries and all positions of the sequence,
    with padding after both."""

    def attend(self, query: Tensor, cache: KVCache, layer: int, scale: float) -> Tensor:
        """Compute one layer's attention of `rows`."""
        count, kv_heads, group, size = query.shape
        keys, values = cache.read_sequence(layer, self.sequence)
        flat = query.permute(1, 2, 0, 3).reshape(1, kv_heads, group * count, size)
        if added := len(self.mask) - group * count:
            flat = F.pad(flat, (0, 0, 0, added))
        out = F.scaled_dot_product_attention(flat, keys, values, self.mask, scale=scale)
        out = out[:, :, : group * count]
        return out.reshape(kv_heads * group, count, size).transpose(0, 1)


AttentionPart = SingleRows | PagedDecode | SharedPrefixDecode | PrefillChunk


def round_up_chunk(queries: int, keys: int) -> tuple[int, int]:
    """Return how many queries of a key head and how many keys to compute instead, in 16 bits.

    PyTorch computes 32 queries at a time, from 192 on 64 and from 768 on 256, and 512 keys. Fewer
    than 64 queries are multiplied without compiled kernels.
    """
    if queries < MIN_COMPILED_QUERIES:
        return queries, keys
    step = 32 if queries <= 160 else 64
    return -(-queries // step) * step, -(-keys // KEYS_STEP) * KEYS_STEP
