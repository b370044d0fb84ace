"""Attention of a step's rows over the blocks of the cache, by what the rows have in common.

Each class has `rows`, the rows of the step that it covers, and `attend`, one layer's attention:
queries [kv heads, group, N, head size] to [N, heads, head size]. The query heads that share a key
head are queries of that head like any others, so no key is repeated.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_core.engine.kv_cache import KVCache

MIN_COMPILED_QUERIES = 64
KEYS_STEP = 64


@dataclass(frozen=True)
class PagedDecode:
    """Sequences of similar length with one new position each."""

    rows: slice
    block_tables: Tensor
    """int64 [N, blocks]"""
    mask: Tensor
    """[N, 1, 1, positions], added to the scores."""

    def attend(self, query: Tensor, cache: KVCache, layer: int, scale: float) -> Tensor:
        """Compute one layer's attention of `rows`."""
        keys, values = cache.read(layer, self.block_tables)
        out = F.scaled_dot_product_attention(
            query.permute(2, 0, 1, 3),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            self.mask,
            scale=scale,
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
    shared_blocks: Tensor
    """int64 [1, blocks]"""
    block_tables: Tensor
    """int64 [N, blocks] after the shared ones."""
    mask: Tensor
    """[N, 1, 1, positions], added to the scores of the positions after the shared ones."""

    def attend(self, query: Tensor, cache: KVCache, layer: int, scale: float) -> Tensor:
        """Compute one layer's attention of `rows`."""
        kv_heads, group, count, size = query.shape
        shared_keys, shared_values = cache.read(layer, self.shared_blocks)
        own_keys, own_values = cache.read(layer, self.block_tables)
        scaled = (query.float() * scale).transpose(1, 2)  # [kv heads, N, group, size]
        flat = scaled.reshape(kv_heads, count * group, size)
        shared = flat @ shared_keys[0].permute(1, 2, 0).float()
        own = scaled.transpose(0, 1) @ own_keys.permute(0, 2, 3, 1).float() + self.mask
        shared = shared.view(kv_heads, count, group, -1).transpose(0, 1)
        weights = torch.cat([shared, own], -1).softmax(-1)
        shared, own = weights.split([shared.shape[-1], own.shape[-1]], -1)
        shared = shared.transpose(0, 1).reshape(kv_heads, count * group, -1)
        among_shared = shared @ shared_values[0].transpose(0, 1).float()
        among_shared = among_shared.view(kv_heads, count, group, -1).transpose(0, 1)
        out: Tensor = among_shared + own @ own_values.transpose(1, 2).float()
        return out.flatten(1, 2).to(query.dtype)


@dataclass(frozen=True)
class PrefillChunk:
    """Several new positions of one sequence."""

    rows: slice
    block_table: Tensor
    """int64 [1, blocks], with padding after those of the sequence."""
    mask: Tensor
    """[queries, keys], added to the scores: group * N queries and all positions of the sequence,
    with padding after both."""

    def attend(self, query: Tensor, cache: KVCache, layer: int, scale: float) -> Tensor:
        """Compute one layer's attention of `rows`."""
        kv_heads, group, count, size = query.shape
        keys, values = cache.read(layer, self.block_table)
        queries, length = self.mask.shape
        flat = query.reshape(1, kv_heads, group * count, size)
        if added := queries - group * count:
            flat = F.pad(flat, (0, 0, 0, added))
        out = F.scaled_dot_product_attention(
            flat,
            keys[:, :length].transpose(1, 2),
            values[:, :length].transpose(1, 2),
            self.mask,
            scale=scale,
        )
        out = out[:, :, : group * count]
        return out.reshape(kv_heads * group, count, size).transpose(0, 1)


AttentionPart = PagedDecode | SharedPrefixDecode | PrefillChunk


def round_up_chunk(queries: int, keys: int) -> tuple[int, int]:
    """Return how many queries of a key head and how many keys to compute instead, in 16 bits.

    PyTorch computes 32 queries at a time, from 192 on 64 and from 768 on 256, and 512 keys. Fewer
    than 64 queries are multiplied without compiled kernels.
    """
    if queries < MIN_COMPILED_QUERIES:
        return queries, keys
    step = 32 if queries <= 160 else 64
    return -(-queries // step) * step, -(-keys // KEYS_STEP) * KEYS_STEP
