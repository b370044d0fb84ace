"""Decode steps as CUDA graphs: the host starts one graph instead of three hundred kernels.

A graph is captured for each of a few numbers of rows; a step of fewer rows is padded. All that a
step needs lies in one static tensor, which one copy fills. Rows of padding have no tile and no
slot: they read nothing and store nothing. The tokens of a step stay on the device too, where the
next step can take them: it may be started before the host has read them.
"""

import warnings
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvila_core.engine.batch import NO_TOKEN, SequenceSlice, StepRows
from nvila_core.engine.triton_attention import TABLE_ALIGNMENT, TritonAttention, TritonBatch
from nvila_core.errors import first_line
from nvila_core.kernels.attention import TILE_FIELDS
from nvila_core.models.language_model import LanguageModel
from nvila_core.models.quantized_products import FEW_ROWS

ROW_BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, FEW_ROWS)
"""Numbers of rows with a graph of their own; steps of more rows run without."""

NO_SLOT = -1
NO_SOURCE = -1
FIELDS = 5
"""int32 numbers of a row: id, position, slot, a flag that the kernels set, and its source: the row
of the step before whose token replaces the id, or NO_SOURCE."""


class StepNumbers:
    """A step of `rows` rows as it is copied to the device."""

    def __init__(self, rows: int, table_width: int, pinned: bool) -> None:
        size = rows * (FIELDS + TILE_FIELDS + table_width)
        self.host = torch.zeros(size, dtype=torch.int32, pin_memory=pinned)
        numbers = self.host.numpy()
        tables_at = (FIELDS + TILE_FIELDS) * rows
        self.fields = numbers[: FIELDS * rows].reshape(FIELDS, rows)
        self.tiles = numbers[FIELDS * rows : tables_at].reshape(rows, TILE_FIELDS)
        self.tables = numbers[tables_at:].reshape(rows, table_width)
        self.filled: list[tuple[list[int], int]] = [([], 0)] * rows
        """The block table of each row, and how many of its blocks have been written."""


class Bucket:
    """The static tensors of steps of at most `rows` sequences with one new position each.

    Attributes:
        batch: reads its numbers from the static tensor.
        sources: int32 [rows], see FIELDS.
        numbers: what has been copied to the static tensor last.
    """

    def __init__(self, attention: TritonAttention, rows: int, table_width: int) -> None:
        self.attention, self.rows = attention, rows
        device = attention.cache.device
        # Two in turn: while a step is filled, the copy of the one before may not have begun.
        self.numbers, self._other = (
            StepNumbers(rows, table_width, device.type == "cuda") for _ in range(2)
        )
        size, tables_at = len(self.numbers.host), (FIELDS + TILE_FIELDS) * rows
        self.device = torch.zeros(size, dtype=torch.int32, device=device)
        *fields, self.sources = self.device[: FIELDS * rows].view(FIELDS, rows).unbind()
        self.batch = TritonBatch(
            attention,
            fields,
            torch.arange(rows, dtype=torch.int32, device=device),
            self.device[FIELDS * rows : tables_at].view(rows, TILE_FIELDS),
            rows,
            self.device[tables_at:].view(rows, table_width),
        )

    def fill(self, slices: Sequence[SequenceSlice], sources: Sequence[int] | None = None) -> None:
        """Write a step into the static tensor, with one copy to the device."""
        count = len(slices)
        step = StepRows(slices, self.attention.cache.block_size)
        self.numbers, self._other = self._other, self.numbers
        fields, tiles, tables = self.numbers.fields, self.numbers.tiles, self.numbers.tables
        fields[:, count:] = np.array([NO_TOKEN, 0, NO_SLOT, 0, NO_SOURCE])[:, None]
        fields[:3, :count] = step.ids, step.positions, step.slots
        fields[3] = 0
        fields[4, :count] = NO_SOURCE if sources is None else sources
        tiles[:] = 0
        row = np.arange(count)
        tiles[:count] = np.stack([row, np.ones_like(row), row, step.positions], 1)
        for index, s in enumerate(slices):
            used = s.num_blocks(self.attention.cache.block_size)
            blocks, written = self.numbers.filled[index]
            if blocks is not s.blocks or written > used:
                written = 0
            tables[index, written:used] = s.blocks[written:used]
            self.numbers.filled[index] = (s.blocks, used)
        self.device.copy_(self.numbers.host, non_blocking=True)


class DecodeGraphs:
    """Runs steps of single rows; captures a graph when a number of rows first occurs.

    Args:
        language: the model.
        attention: plans steps without a graph.
        max_model_len: positions at most of a sequence.
        vocab: tokens that can be drawn.
    """

    def __init__(
        self, language: LanguageModel, attention: TritonAttention, max_model_len: int, vocab: int
    ) -> None:
        self.language, self.attention, self.vocab = language, attention, vocab
        blocks = -(-max_model_len // attention.cache.block_size)
        self.table_width = -(-blocks // TABLE_ALIGNMENT) * TABLE_ALIGNMENT
        self.enabled = True
        self.latest = torch.zeros(ROW_BUCKETS[-1], dtype=torch.int32, device=attention.cache.device)
        """The tokens of the last step, by row: the likeliest, unless another is written there."""
        self._pool: Any = None
        self._stream: Any = None
        self._buckets: dict[int, Bucket] = {}
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def takes(self, s: SequenceSlice) -> bool:
        """Return whether a graph can compute a sequence's new positions: one, after which a token
        is drawn."""
        return s.count == 1 and s.complete and s.ids[0] >= 0

    def run(
        self, slices: Sequence[SequenceSlice], sources: Sequence[int] | None = None
    ) -> tuple[Tensor, Tensor] | None:
        """Compute sequences that `takes` accepts; None without a graph for so many.

        Args:
            slices: the positions to compute.
            sources: for each the row of the last call, whose token in `latest` it has; None: those
                of `slices`. Such a step captures no graph: capturing computes a step itself.

        Returns:
            Logits float32 [N, vocab], and int32 [3, N]: the likeliest tokens, whether their logits
            are finite, and whether keys and values are. They are valid until the next call: the
            graphs share their memory.
        """
        if not self.enabled or not slices or len(slices) > ROW_BUCKETS[-1]:
            return None
        rows = ROW_BUCKETS[bisect_left(ROW_BUCKETS, len(slices))]
        if sources is not None and rows not in self._graphs:
            return None
        if rows not in self._buckets:
            self._buckets[rows] = Bucket(self.attention, rows, self.table_width)
        bucket = self._buckets[rows]
        bucket.fill(slices, sources)
        if rows not in self._graphs and not self._capture(bucket):
            return None
        graph, logits, outcome = self._graphs[rows]
        graph.replay()
        count = len(slices)
        return logits[:count], outcome[:, :count]

    def compute(self, bucket: Bucket) -> tuple[Tensor, Tensor]:
        """Compute a step; all of it can be captured."""
        batch, sources = bucket.batch, bucket.sources
        latest = self.latest.index_select(0, sources.clamp(min=0))
        embeds = self.language.embed_rows(torch.where(sources == NO_SOURCE, batch.ids, latest))
        hidden = self.language.model(embeds, batch.positions, batch)
        logits = self.language.logits(hidden, self.vocab)
        maxima, tokens = logits.max(-1)
        self.latest[: bucket.rows].copy_(tokens)
        return logits, torch.stack([tokens.int(), maxima.isfinite().int(), 1 - batch.damaged])

    def _record(self, graph: torch.cuda.CUDAGraph, bucket: Bucket) -> tuple[Tensor, Tensor]:
        """Record a step on the current device into a graph; return where it leaves its results."""
        # Graphs that share memory share a stream. PyTorch's default is one for all devices.
        stream = self._stream = self._stream or torch.cuda.Stream(priority=-1)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate and compile at the first call
            self.compute(bucket)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
            return self.compute(bucket)

    def _capture(self, bucket: Bucket) -> bool:
        """Capture the graph of a bucket; if that fails, say so once and do without graphs."""
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(bucket.device.device):
                logits, outcome = self._record(graph, bucket)
        except RuntimeError as error:
            self.enabled = False
            warnings.warn(
                f"Decode steps run without CUDA graphs, because capturing one failed "
                f"({first_line(error)}): they take longer.",
                RuntimeWarning,
                stacklevel=2,
            )
            return False
        self._pool = self._pool or graph.pool()
        # The first call has set the flags of rows that are not finite; the replay must not see it.
        bucket.device.copy_(bucket.numbers.host, non_blocking=True)
        self._graphs[bucket.rows] = (graph, logits, outcome)
        return True
