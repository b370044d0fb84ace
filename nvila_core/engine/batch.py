"""One step of the language model over many sequences at once: one row a position, none wasted.

Prompts in part and single new tokens of any number of sequences lie one after another in one
batch; all layers but attention work on rows and do not care whose they are. Attention reads each
sequence's own blocks of the cache.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvila_core.engine.kv_cache import KVCache
from nvila_core.engine.paged_attention import Chunk, Family, Part, Singles

WORTH_SHARING = 128
"""Blocks that need not be read again: for fewer, attention in two parts takes longer than it saves.

Measured on two cores (benchmarks/shared_prefix.py): 0.3 ms a layer either way where 8 sequences
share 16 blocks, 1.2 against 2.5 ms where they share 42.
"""


@dataclass(frozen=True)
class Rows:
    """`count` new positions of one sequence from `start` on, and the blocks of the sequence."""

    start: int
    count: int
    blocks: list[int]

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.start + self.count


class Batch:
    """Where the rows of one step belong.

    Attributes:
        order: the place of each row's sequence among those given, in the order of the batch.
        positions: int64 [1, N], the position of every row in its sequence.
        parts: the rows, in order, divided by how attention reads the cache for them.
    """

    def __init__(self, cache: KVCache, rows: Sequence[Rows], heads: int) -> None:
        self.cache = cache
        self.group = heads // cache.num_kv_heads
        self.order: list[int] = []
        self.parts: list[Part] = []
        placed = 0
        singles = [i for i, r in enumerate(rows) if r.count == 1]
        for members, common in self._families(rows, singles):
            place = slice(placed, placed + len(members))
            self.parts.append(self._single([rows[i] for i in members], place, common))
            self.order += members
            placed = place.stop
        for index, r in enumerate(rows):
            if r.count > 1:
                self.parts.append(self._chunk(r, slice(placed, placed + r.count)))
                self.order.append(index)
                placed += r.count
        ordered = [rows[i] for i in self.order]
        positions = np.concatenate([np.arange(r.start, r.end) for r in ordered])
        self.positions = self._tensor(positions)[None]
        self.slots = self._tensor(np.concatenate([self._slots(r) for r in ordered]))

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.cache.device, non_blocking=True)

    def _used(self, rows: Rows) -> int:
        """Blocks with positions in them."""
        return -(-rows.end // self.cache.block_size)

    def _slots(self, rows: Rows) -> NDArray[np.int64]:
        size = self.cache.block_size
        positions = np.arange(rows.start, rows.end)
        first = rows.start // size
        own = np.asarray(rows.blocks[first : self._used(rows)], np.int64)
        return own[positions // size - first] * size + positions % size

    def _families(self, rows: Sequence[Rows], singles: list[int]) -> list[tuple[list[int], int]]:
        """Sequences that are read together, and how many blocks they have in common.

        Those that begin alike are together where that is at least half of each; the others by
        length. So nobody is padded to more than twice their own.
        """
        families: list[tuple[list[int], int]] = []
        alone: list[int] = []
        left = sorted(singles, key=lambda i: rows[i].blocks)
        while left:
            count, common = self._family([rows[i] for i in left])
            if common * (count - 1) < WORTH_SHARING:
                alone += left[:count]
            else:
                families.append((left[:count], common))
            left = left[count:]
        alone.sort(key=lambda i: rows[i].end)
        while alone:
            most = 2 * self._used(rows[alone[0]])
            families.append(([i for i in alone if self._used(rows[i]) <= most], 0))
            alone = alone[len(families[-1][0]) :]
        return families

    def _family(self, rows: Sequence[Rows]) -> tuple[int, int]:
        """How many of the first rows begin alike, and in how many blocks; rows in their order."""
        longest = self._used(rows[0])
        common = longest - 1  # the last one is still being filled
        for count, r in enumerate(rows[1:], 1):
            longest = max(longest, self._used(r))
            alike = _alike(rows[0].blocks, r.blocks, min(common, self._used(r) - 1))
            if 2 * alike < longest:
                return count, common
            common = alike
        return len(rows), common

    def _single(self, rows: Sequence[Rows], place: slice, common: int) -> Part:
        size = self.cache.block_size
        tables = np.zeros((len(rows), max(map(self._used, rows)) - common), np.int64)
        for table, r in zip(tables, rows, strict=True):
            own = r.blocks[common : self._used(r)]
            table[: len(own)] = own
        ends = np.array([r.end - common * size for r in rows])
        unseen = np.arange(tables.shape[1] * size)[None] >= ends[:, None]
        mask = self._mask(unseen)[:, None, None]
        if not common:
            return Singles(place, self._tensor(tables), mask)
        shared = np.asarray(rows[0].blocks[:common], np.int64)[None]
        return Family(place, self._tensor(shared), self._tensor(tables), mask)

    def _chunk(self, rows: Rows, place: slice) -> Chunk:
        table = np.asarray(rows.blocks[: self._used(rows)], np.int64)[None]
        unseen = np.arange(rows.end)[None] > np.arange(rows.start, rows.end)[:, None]
        mask = self._mask(unseen).repeat(self.group, 1)
        return Chunk(place, self._tensor(table), rows.end, mask)

    def _mask(self, unseen: NDArray[np.bool_]) -> Tensor:
        """To add to scores."""
        mask = np.where(unseen, np.float32(-np.inf), np.float32(0))
        return self._tensor(mask).to(self.cache.dtype)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Attention of one layer: [heads or kv heads, N, head size] to [N, heads, head size]."""
        heads, count, size = query.shape
        self.cache.write(layer, self.slots, key.transpose(0, 1), value.transpose(0, 1))
        grouped = query.unflatten(0, (heads // self.group, self.group))
        out = query.new_empty(count, heads, size)
        for part in self.parts:
            out[part.rows] = part.attend(grouped[:, :, part.rows], self.cache, layer, scale)
        return out


def _alike(some: list[int], others: list[int], most: int) -> int:
    """How many of the first `most` blocks are the same, up to the first that is not."""
    if some[:most] == others[:most]:
        return most
    return bisect_left(range(most), True, key=lambda n: some[: n + 1] != others[: n + 1])
