"""One step of the language model over many sequences at once: one row a position, none wasted.

Prompts in part and single new tokens of any number of sequences lie one after another in one
batch; all layers but attention work on rows and do not care whose they are. Attention reads each
sequence's own blocks of the cache.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .kv_cache import KVCache


@dataclass(frozen=True)
class Rows:
    """`count` new positions of one sequence from `start` on, and the blocks of the sequence."""

    start: int
    count: int
    blocks: Sequence[int]

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.start + self.count


@dataclass(frozen=True)
class _Singles:
    """Sequences of similar length with one new position each."""

    rows: slice
    tables: Tensor  # [B, blocks]
    mask: Tensor  # [B, 1, 1, positions], to add


@dataclass(frozen=True)
class _Chunk:
    """Several new positions of one sequence."""

    rows: slice
    table: Tensor  # [1, blocks]
    length: int
    mask: Tensor  # [group * count, length], to add


class Batch:
    """Where the rows of one step belong.

    Attributes:
        order: the place of each row's sequence among those given, in the order of the batch.
        positions: int64 [1, N], the position of every row in its sequence.
    """

    def __init__(self, cache: KVCache, rows: Sequence[Rows], heads: int) -> None:
        self.cache = cache
        self.group = heads // cache.keys[0].shape[2]
        self.device, self.dtype = cache.keys[0].device, cache.keys[0].dtype
        singles = [i for i, r in enumerate(rows) if r.count == 1]
        singles.sort(key=lambda i: rows[i].end)
        self.order = singles + [i for i, r in enumerate(rows) if r.count > 1]
        ordered = [rows[i] for i in self.order]
        positions = np.concatenate([np.arange(r.start, r.end) for r in ordered])
        slots = np.concatenate([self._slots(r) for r in ordered])
        self.positions = self._tensor(positions)[None]
        self.slots = self._tensor(slots)
        self.singles = self._group_singles(ordered[: len(singles)])
        self.chunks = self._chunks(ordered[len(singles) :], len(singles))

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    def _slots(self, rows: Rows) -> NDArray[np.int64]:
        size = self.cache.block_size
        positions = np.arange(rows.start, rows.end)
        first = rows.start // size
        own = np.asarray(rows.blocks[first : (rows.end - 1) // size + 1], np.int64)
        return own[positions // size - first] * size + positions % size

    def _group_singles(self, rows: Sequence[Rows]) -> list[_Singles]:
        """Shortest first; a group ends where its shortest would be padded to more than twice."""
        groups, first = [], 0
        while first < len(rows):
            most = 2 * (-(-rows[first].end // self.cache.block_size))
            last = first
            while last < len(rows) and -(-rows[last].end // self.cache.block_size) <= most:
                last += 1
            groups.append(self._singles(rows[first:last], first))
            first = last
        return groups

    def _singles(self, rows: Sequence[Rows], first: int) -> _Singles:
        size = self.cache.block_size
        width = -(-rows[-1].end // size)
        tables = np.zeros((len(rows), width), np.int64)
        for table, r in zip(tables, rows, strict=True):
            used = -(-r.end // size)
            table[:used] = r.blocks[:used]
        ends = np.array([r.end for r in rows])
        hidden = np.arange(width * size)[None] >= ends[:, None]
        mask = np.where(hidden, np.float32(-np.inf), np.float32(0))
        return _Singles(
            slice(first, first + len(rows)),
            self._tensor(tables),
            self._tensor(mask).to(self.dtype)[:, None, None],
        )

    def _chunks(self, rows: Sequence[Rows], first: int) -> list[_Chunk]:
        chunks = []
        for r in rows:
            used = -(-r.end // self.cache.block_size)
            table = np.asarray(r.blocks[:used], np.int64)[None]
            ahead = np.arange(r.end)[None] > np.arange(r.start, r.end)[:, None]
            mask = np.where(ahead, np.float32(-np.inf), np.float32(0))
            chunks.append(
                _Chunk(
                    slice(first, first + r.count),
                    self._tensor(table),
                    r.end,
                    self._tensor(mask).to(self.dtype).repeat(self.group, 1),
                )
            )
            first += r.count
        return chunks

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of one layer: [heads or kv heads, N, head size] to [N, heads, head size].

        Query heads that share a key head are queries of it like any other, so nothing is repeated.
        """
        heads, count, size = query.shape
        shared = heads // self.group
        self.cache.write(layer, self.slots, key.transpose(0, 1), value.transpose(0, 1))
        out = query.new_empty(count, heads, size)
        for part in self.singles:
            keys, values = self.cache.read(layer, part.tables)
            asked = query[:, part.rows].unflatten(0, (shared, self.group)).permute(2, 0, 1, 3)
            seen = F.scaled_dot_product_attention(
                asked, keys.transpose(1, 2), values.transpose(1, 2), part.mask, scale=scale
            )
            out[part.rows] = seen.flatten(1, 2)
        for chunk in self.chunks:
            keys, values = self.cache.read(layer, chunk.table)
            asked = query[:, chunk.rows].reshape(1, shared, -1, size)
            seen = F.scaled_dot_product_attention(
                asked,
                keys[:, : chunk.length].transpose(1, 2),
                values[:, : chunk.length].transpose(1, 2),
                chunk.mask,
                scale=scale,
            )
            out[chunk.rows] = seen.reshape(heads, -1, size).transpose(0, 1)
        return out
