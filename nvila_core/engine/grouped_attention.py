"""Attention in PyTorch, for processors: the rows of a step in groups that are read together."""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from nvila_core.engine.batch import Batch, SequenceSlice, StepRows
from nvila_core.engine.kv_cache import KVCache, is_run
from nvila_core.engine.paged_attention import (
    AttentionPart,
    PagedDecode,
    PrefillChunk,
    SharedPrefixDecode,
    SingleRows,
    round_up_chunk,
)
from nvila_core.models.rotation import Rotation

MIN_SAVED_BLOCKS = 128
"""Block reads that a shared prefix must save: below, attention in two parts takes longer.

Measured on two cores (benchmarks/shared_prefix.py): 0.3 ms a layer either way where 8 sequences
share 16 blocks, 1.2 against 2.5 ms where they share 42.
"""

MIN_READ_ALONE = 192
"""Positions at least of a sequence that is read by itself, without a copy, beside others.

Measured on one thread with the demo's heads: 8 sequences take 107 us a layer one by one and 74
together at 100 positions, 142 and 132 at 200, 173 and 207 at 300, 371 and 704 at 1,000.
"""


class GroupedAttention:
    """Plans the attention of steps; see `AttentionPlanner`.

    Args:
        cache: holds earlier keys and values, and takes the new ones.
        num_heads: query heads of a layer.
    """

    def __init__(self, cache: KVCache, num_heads: int) -> None:
        self.cache, self.num_heads = cache, num_heads

    def plan(self, slices: Sequence[SequenceSlice]) -> "GroupedBatch":
        """Return the batch of a step's new positions."""
        return GroupedBatch(self.cache, slices, self.num_heads)


class GroupedBatch(Batch):
    """The rows of one step, and their attention over a `KVCache`.

    Attributes:
        parts: the rows, in order, divided by how attention reads the cache for them.
    """

    def __init__(self, cache: KVCache, slices: Sequence[SequenceSlice], num_heads: int) -> None:
        self.cache = cache
        self.group = num_heads // cache.num_kv_heads
        self.order: list[int] = []
        self.parts: list[AttentionPart] = []
        count = 0
        decodes = [i for i, s in enumerate(slices) if s.count == 1]
        for members, shared in self._group_decodes(slices, decodes):
            rows = slice(count, count + len(members))
            decoding = [slices[i] for i in members]
            if not shared and (len(decoding) == 1 or self._is_read_alone(decoding[0])):
                stored = [cache.locate(s.blocks, s.end) for s in decoding]
                self.parts.append(SingleRows(rows, stored))
            else:
                self.parts.append(self._decode(decoding, rows, shared))
            self.order += members
            count = rows.stop
        for index, s in enumerate(slices):
            if s.count > 1:
                self.parts.append(self._prefill(s, slice(count, count + s.count)))
                self.order.append(index)
                count += s.count
        step = StepRows([slices[i] for i in self.order], cache.block_size)
        self.ids, self.positions = self._tensor(step.ids), self._tensor(step.positions)
        self.slots, self.last_rows = self._tensor(step.slots), self._tensor(step.last_rows)

    def attend(
        self,
        layer: int,
        qkv: Tensor,
        heads: int,
        rotation: Rotation,
        scale: float,
        fp8: bool = False,
    ) -> Tensor:
        """Store the rows' keys and values, and attend; see `AttentionBackend.attend`."""
        cache, kv_heads = self.cache, self.cache.num_kv_heads
        count, _, size = qkv.shape
        rotated = rotation.rotate(qkv[:, : heads + kv_heads])
        cache.write(layer, self.slots, rotated[:, heads:], qkv[:, heads + kv_heads :])
        grouped = rotated[:, :heads].view(count, kv_heads, self.group, size)
        if len(self.parts) == 1:
            return self.parts[0].attend(grouped, cache, layer, scale)
        return torch.cat(
            [part.attend(grouped[part.rows], cache, layer, scale) for part in self.parts]
        )

    def are_finite(self) -> Tensor:
        """Return bool [N]: whether the keys and values of each row are finite in all layers."""
        return self.cache.are_finite(self.slots)

    def _tensor(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(self.cache.device, non_blocking=True)

    def _num_blocks(self, s: SequenceSlice) -> int:
        return s.num_blocks(self.cache.block_size)

    def _group_decodes(
        self, slices: Sequence[SequenceSlice], decodes: list[int]
    ) -> list[tuple[list[int], int]]:
        """Group the sequences that are read together.

        Sequences that begin with the same blocks form a group where these are at least half of
        each; those that are read one by one form another; the rest are grouped by length, so that
        none is padded to more than twice its own.

        Returns:
            The members of each group and their number of shared blocks.
        """
        groups: list[tuple[list[int], int]] = []
        alone: list[int] = []
        left = sorted(decodes, key=lambda i: slices[i].blocks)
        while left:
            count, shared = self._shared_prefix([slices[i] for i in left])
            if shared * (count - 1) < MIN_SAVED_BLOCKS:
                alone += left[:count]
            else:
                groups.append((left[:count], shared))
            left = left[count:]
        if len(decodes) > 1 and (single := [i for i in alone if self._is_read_alone(slices[i])]):
            groups.append((single, 0))
            alone = [i for i in alone if i not in single]
        alone.sort(key=lambda i: slices[i].end)
        while alone:
            limit = 2 * self._num_blocks(slices[alone[0]])
            groups.append(([i for i in alone if self._num_blocks(slices[i]) <= limit], 0))
            alone = alone[len(groups[-1][0]) :]
        return groups

    def _is_read_alone(self, s: SequenceSlice) -> bool:
        """Return whether reading a decoding sequence by itself takes less time than with others."""
        if s.end < MIN_READ_ALONE or not is_run(s.blocks[: self._num_blocks(s)]):
            return False
        # PyTorch gives each thread some heads: those of one sequence may be too few.
        return torch.get_num_threads() <= self.cache.num_kv_heads

    def _shared_prefix(self, slices: Sequence[SequenceSlice]) -> tuple[int, int]:
        """Return how many of the first `slices` share a prefix, and how many blocks it has.

        The slices must be sorted by their blocks.
        """
        longest = self._num_blocks(slices[0])
        shared = longest - 1  # the last block is still being filled
        for count, s in enumerate(slices[1:], 1):
            longest = max(longest, self._num_blocks(s))
            common = _common_prefix(
                slices[0].blocks, s.blocks, min(shared, self._num_blocks(s) - 1)
            )
            if 2 * common < longest:
                return count, shared
            shared = common
        return len(slices), shared

    def _decode(self, slices: Sequence[SequenceSlice], rows: slice, shared: int) -> AttentionPart:
        size = self.cache.block_size
        width = max(map(self._num_blocks, slices)) - shared
        tables = np.full((len(slices), width), self.cache.padding_block, np.int64)
        for table, s in zip(tables, slices, strict=True):
            own = s.blocks[shared : self._num_blocks(s)]
            table[: len(own)] = own
        ends = np.array([s.end - shared * size for s in slices])
        masked = np.arange(tables.shape[1] * size)[None] >= ends[:, None]
        mask = self._mask(masked)[:, None, None]
        if not shared:
            return PagedDecode(rows, self._tensor(tables), mask)
        prefix = self.cache.locate(slices[0].blocks, shared * size)
        return SharedPrefixDecode(rows, prefix, self._tensor(tables), mask)

    def _prefill(self, s: SequenceSlice, rows: slice) -> PrefillChunk:
        queries, keys = self.group * s.count, s.end
        if self.cache.device.type == "cpu" and self.cache.dtype is not torch.float32:
            queries, keys = round_up_chunk(queries, keys)
        blocks = list(s.blocks[: self._num_blocks(s)])
        blocks += [self.cache.padding_block] * (-(-keys // self.cache.block_size) - len(blocks))
        masked = np.arange(keys)[None] > np.arange(s.start, s.end)[:, None]
        mask = self._mask(masked).repeat(self.group, 1)
        mask = F.pad(mask, (0, 0, 0, queries - len(mask)))
        return PrefillChunk(rows, self.cache.locate(blocks, keys), mask)

    def _mask(self, masked: NDArray[np.bool_]) -> Tensor:
        """Return an additive mask: -inf where `masked`, 0 elsewhere."""
        mask = np.where(masked, np.float32(-np.inf), np.float32(0))
        return self._tensor(mask).to(self.cache.dtype)


def _common_prefix(a: list[int], b: list[int], limit: int) -> int:
    """Return the length of the common prefix of two block tables, at most `limit`."""
    if a[:limit] == b[:limit]:
        return limit
    return bisect_left(range(limit), True, key=lambda n: a[: n + 1] != b[: n + 1])
