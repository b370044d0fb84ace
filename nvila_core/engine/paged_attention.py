"""Attention of a step's rows over the blocks of the cache, by what the rows have in common.

Each kind of part has `rows`, its place in the step, and `attend`, one layer's attention: queries
[kv heads, group, N, head size] to [N, heads, head size]. Query heads that share a key head are
queries of it like any other, so no key is repeated.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_core.engine.kv_cache import KVCache


@dataclass(frozen=True)
class Singles:
    """Sequences of similar length with one new position each."""

    rows: slice
    tables: Tensor
    """int64 [N, blocks]"""
    mask: Tensor
    """[N, 1, 1, positions], to add."""

    def attend(self, query: Tensor, cache: KVCache, layer: int, scale: float) -> Tensor:
        """One layer's attention of `rows`."""
        keys, values = cache.read(layer, self.tables)
        seen = F.scaled_dot_product_attention(
            query.permute(2, 0, 1, 3),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            self.mask,
            scale=scale,
        )
        return seen.flatten(1, 2)


@dataclass(frozen=True)
class Family:
    """Sequences with one new position each whose first blocks are the same: read once for all.

    All queries meet the common keys in one product, as in Hydragen (Juravsky et al. 2024).
    """

    rows: slice
    common: Tensor
    """int64 [1, blocks]"""
    tables: Tensor
    """int64 [N, blocks], of what comes after."""
    mask: Tensor
    """[N, 1, 1, positions], to add to the scores of what comes after."""

    def attend(self, query: Tensor, cache: KVCache, layer: int, scale: float) -> Tensor:
        """One layer's attention of `rows`."""
        shared, group, count, size = query.shape
        keys, values = cache.read(layer, self.common)
        own_keys, own_values = cache.read(layer, self.tables)
        asked = (query * scale).transpose(1, 2)  # [kv heads, N, group, size]
        first = asked.reshape(shared, count * group, size) @ keys[0].permute(1, 2, 0)
        then = asked.transpose(0, 1) @ own_keys.permute(0, 2, 3, 1) + self.mask
        first = first.view(shared, count, group, -1).transpose(0, 1)
        weights = torch.cat([first, then], -1).softmax(-1, torch.float32).to(query.dtype)
        among, after = weights.split([first.shape[-1], then.shape[-1]], -1)
        among = among.transpose(0, 1).reshape(shared, count * group, -1)
        seen = (among @ values[0].transpose(0, 1)).view(shared, count, group, size)
        out: Tensor = seen.transpose(0, 1) + after @ own_values.transpose(1, 2)
        return out.flatten(1, 2)


@dataclass(frozen=True)
class Chunk:
    """Several new positions of one sequence."""

    rows: slice
    table: Tensor
    """int64 [1, blocks]"""
    length: int
    """Positions of the sequence, the new ones included."""
    mask: Tensor
    """[group * N, length], to add."""

    def attend(self, query: Tensor, cache: KVCache, layer: int, scale: float) -> Tensor:
        """One layer's attention of `rows`."""
        shared, group, count, size = query.shape
        keys, values = cache.read(layer, self.table)
        seen = F.scaled_dot_product_attention(
            query.reshape(1, shared, group * count, size),
            keys[:, : self.length].transpose(1, 2),
            values[:, : self.length].transpose(1, 2),
            self.mask,
            scale=scale,
        )
        return seen.reshape(shared * group, count, size).transpose(0, 1)


Part = Singles | Family | Chunk
