"""Attention by a Triton kernel, for GPUs: all rows of a step, whatever sequence they belong to.

What the kernel needs to know of a step is a few numbers for each row and tile, and the block
tables. They are written into one pinned buffer and copied at once; no mask and no index is built.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvila_core.engine.batch import Batch, SequenceSlice, StepRows
from nvila_core.engine.kv_cache import KVCache
from nvila_core.kernels import attention as kernels
from nvila_core.kernels import layer as layer_kernels
from nvila_core.models.fp8_rows import RowsFP8, fp8_kernels, joined_splits
from nvila_core.models.kernels import power_of_two
from nvila_core.models.rotation import Rotation
from nvila_core.models.staging import stage

MAX_SPLITS = 64
"""Parts at most of the keys of one row."""

PROGRAMS_PER_PROCESSOR = 2
"""Programs that keep a multiprocessor busy: the keys of few rows are divided until there are."""

TABLE_ALIGNMENT = 16
"""Block tables have a multiple of so many entries, so that Triton compiles the kernel once."""


@dataclass(frozen=True)
class Tiling:
    """Sizes of the kernel's programs: queries (rows times heads), keys, warps, pipeline stages."""

    queries: int
    keys: int
    warps: int
    stages: int


SINGLE_ROWS = Tiling(16, 64, 4, 3)
CHUNKS = Tiling(128, 64, 8, 2)
CHUNKS_SMALL = Tiling(128, 32, 8, 2)
"""For GPUs where more keys at once would not fit the registers (8.x and 12.x)."""

SINGLE_ROWS_FLOAT32 = Tiling(16, 32, 4, 1)
CHUNKS_FLOAT32 = Tiling(64, 32, 8, 1)


def chunk_tiling(capability: tuple[int, int]) -> Tiling:
    """Return the tiling of chunks that suits a GPU of a compute capability."""
    return CHUNKS if capability[0] in (9, 10) else CHUNKS_SMALL


class TritonAttention:
    """Plans the attention of steps; see `AttentionPlanner`.

    Args:
        cache: holds earlier keys and values, and takes the new ones.
        num_heads: query heads of a layer.
        processors: multiprocessors to keep busy; default: those of the device.
    """

    def __init__(self, cache: KVCache, num_heads: int, processors: int | None = None) -> None:
        self.cache, self.num_heads = cache, num_heads
        head_dim = cache.keys[0].shape[-1]
        self.group = num_heads // cache.num_kv_heads
        self.padded_dim = max(16, power_of_two(head_dim))
        self.interpreted = cache.device.type != "cuda"
        if self.interpreted:
            self.processors, self.chunks, self.single_rows = 1, CHUNKS, SINGLE_ROWS
        else:
            found = torch.cuda.get_device_properties(cache.device)
            self.processors = found.multi_processor_count
            self.chunks, self.single_rows = chunk_tiling((found.major, found.minor)), SINGLE_ROWS
            if cache.dtype is torch.float32:
                self.chunks, self.single_rows = CHUNKS_FLOAT32, SINGLE_ROWS_FLOAT32
        self.processors = processors or self.processors
        if cache.keys[0].numel() >= 2**31:
            raise ValueError("a layer of the cache has more elements than 32 bits can number")

    def plan(self, slices: Sequence[SequenceSlice]) -> "TritonBatch":
        """Return the batch of a step's new positions, in the order of `slices`."""
        step = StepRows(slices, self.cache.block_size)
        tiles, num_single = self.tiles_of(slices)
        numbers = [step.ids, step.positions, step.slots, np.zeros_like(step.ids), step.last_rows]
        staged = stage(
            [*(a.astype(np.int32) for a in numbers), tiles, self.tables_of(slices)],
            self.cache.device,
        )
        *rows, last_rows, tiles_there, tables = staged
        return TritonBatch(self, rows, last_rows, tiles_there, num_single, tables)

    def splits(self, rows: int) -> int:
        """Return the parts into which the keys of `rows` single rows are divided: a power of two.

        It depends on nothing else, so that a captured graph fits every step of as many rows.
        """
        programs = max(1, rows * self.cache.num_kv_heads)
        wanted = self.processors * PROGRAMS_PER_PROCESSOR / programs
        return min(MAX_SPLITS, 1 << max(0, math.ceil(math.log2(max(1.0, wanted)))))

    def tiles_of(self, slices: Sequence[SequenceSlice]) -> tuple[NDArray[np.int32], int]:
        """Return the tiles int32 [T, 4] of slices, single rows first, and the number of those.

        Tiles of chunks with the most keys come first: they take longest.
        """
        single: list[tuple[int, int, int, int]] = []
        chunks: list[tuple[int, int, int, int]] = []
        rows_per_tile, row = self.chunks.queries // self.group, 0
        for sequence, s in enumerate(slices):
            if s.count == 1:
                single.append((row, 1, sequence, s.start))
            else:
                for first in range(0, s.count, rows_per_tile):
                    count = min(rows_per_tile, s.count - first)
                    chunks.append((row + first, count, sequence, s.start + first))
            row += s.count
        chunks.sort(key=lambda tile: -tile[3])
        tiles = np.array([*single, *chunks], np.int32).reshape(-1, kernels.TILE_FIELDS)
        return tiles, len(single)

    def tables_of(self, slices: Sequence[SequenceSlice], width: int = 0) -> NDArray[np.int32]:
        """Return the block tables int32 [sequences, width], the rest of each row zeros."""
        size = self.cache.block_size
        longest = max((s.num_blocks(size) for s in slices), default=0)
        width = max(width, -(-longest // TABLE_ALIGNMENT) * TABLE_ALIGNMENT)
        tables = np.zeros((len(slices), width), np.int32)
        for table, s in zip(tables, slices, strict=True):
            used = s.num_blocks(size)
            table[:used] = s.blocks[:used]
        return tables


class TritonBatch(Batch):
    """The rows of one step, and their attention over a `KVCache`.

    Args:
        attention: computes it.
        rows: int32 [4, N]: id, position, slot of each row, and the zeros of `damaged`.
        last_rows, tiles, num_single, tables: see the attributes.

    Attributes:
        tiles: int32 [T, 4], see `kernels.attention`; those of single rows come first.
        num_single: the number of those.
        tables: int32 [sequences, blocks].
        damaged: int32 [N], set by the kernels where a row's key or value is not finite.
    """

    def __init__(
        self,
        attention: TritonAttention,
        rows: Sequence[Tensor],
        last_rows: Tensor,
        tiles: Tensor,
        num_single: int,
        tables: Tensor,
    ) -> None:
        self.attention, self.cache = attention, attention.cache
        self.ids, self.positions, self.slots, self.damaged = rows
        self.last_rows, self.tiles, self.tables = last_rows, tiles, tables
        self.num_single = num_single
        self.order = list(range(len(tables)))

    def attend(
        self,
        layer: int,
        qkv: Tensor,
        heads: int,
        rotation: Rotation,
        scale: float,
        fp8: bool = False,
    ) -> Tensor | RowsFP8:
        """Store the rows' keys and values, and attend; see `AttentionBackend.attend`."""
        rows, _, size = qkv.shape
        half, kv_heads = size // 2, self.cache.num_kv_heads
        if not _packed(qkv):
            qkv = qkv.contiguous()
        query, key, value = qkv.split([heads, kv_heads, kv_heads], 1)
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        layer_kernels.rotate_and_store[(rows, 3)](
            query,
            key,
            value,
            keys,
            values,
            self.positions,
            self.slots,
            self.damaged,
            rotation.inv_freq,
            query.stride(0),
            key.stride(0),
            heads,
            kv_heads,
            half,
            power_of_two(heads),
            power_of_two(kv_heads),
            power_of_two(half),
            num_warps=2,
        )
        single, chunks = self.tiles[: self.num_single], self.tiles[self.num_single :]
        splits, tiling = self.attention.splits(len(single)), self.attention.single_rows
        # Beside chunks, whose rows need no joining, the product quantizes all rows at once.
        if fp8 and splits > 1 and len(single) == rows and fp8_kernels(query) is not None:
            parts = self._launch(single, tiling, splits, query, query, layer, scale)
            return joined_splits(*parts, single, query)
        out = qkv.new_empty(rows, heads, size)
        if len(single):
            parts = self._launch(single, tiling, splits, query, out, layer, scale)
            if splits > 1:
                padded = self.attention.padded_dim
                kernels.combine_splits[(len(single), heads)](
                    *parts, out, single, rows, heads, size, padded, splits, num_warps=4
                )
        if len(chunks):
            self._launch(chunks, self.attention.chunks, 1, query, out, layer, scale)
        return out

    def are_finite(self) -> Tensor:
        """Return bool [N]: whether the keys and values of each row are finite in all layers."""
        return self.damaged == 0

    def _launch(
        self,
        tiles: Tensor,
        tiling: Tiling,
        splits: int,
        query: Tensor,
        out: Tensor,
        layer: int,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """Compute the attention of some tiles; of each part of the keys where they are divided.

        Returns:
            Where splits are more than 1, the parts float32 [splits, rows, heads, head size] and
            their sums' logarithms float32 [splits, rows, heads]; `out` is then not written.
        """
        rows, heads, size = query.shape
        kv_heads, padded = self.cache.num_kv_heads, self.attention.padded_dim
        partial = log_sums = out
        if splits > 1:
            partial = query.new_empty(splits, rows, heads, size, dtype=torch.float32)
            log_sums = query.new_empty(splits, rows, heads, dtype=torch.float32)
        kernels.paged_attention[(len(tiles), kv_heads, splits)](
            query,
            self.cache.keys[layer],
            self.cache.values[layer],
            out,
            partial,
            log_sums,
            tiles,
            self.tables,
            scale * math.log2(math.e),
            query.stride(0),
            size,
            self.tables.stride(0),
            rows,
            heads,
            kv_heads,
            size,
            padded,
            self.cache.block_size,
            tiling.queries,
            tiling.keys,
            splits,
            self.attention.interpreted,
            num_warps=tiling.warps,
            num_stages=tiling.stages,
        )
        return partial, log_sums


def _packed(x: Tensor) -> bool:
    """Return whether the heads of each row [N, heads, head size] lie one after another."""
    return x.stride(2) == 1 and x.stride(1) == x.shape[2]
