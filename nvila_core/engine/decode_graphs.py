"""Decode steps as CUDA graphs: the host starts one graph instead of three hundred kernels.

A graph is captured for each of a few numbers of rows; a step of fewer rows is padded. All that a
step needs lies in one static tensor, which one copy fills. Rows of padding have no tile and no
slot: they read nothing and store nothing.
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

BUCKETS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of rows with a graph of their own; steps of more rows run without."""

NO_SLOT = -1
FIELDS = 4
"""int32 numbers of a row: id, position, slot, and a flag that the kernels set."""


class Bucket:
    """The static tensors of steps of at most `rows` sequences with one new position each.

    Attributes:
        batch: reads its numbers from the static tensor.
    """

    def __init__(self, attention: TritonAttention, rows: int, table_width: int) -> None:
        self.attention, self.rows = attention, rows
        device = attention.cache.device
        size = rows * (FIELDS + TILE_FIELDS + table_width)
        self.host = torch.zeros(size, dtype=torch.int32, pin_memory=device.type == "cuda")
        self.device = torch.zeros(size, dtype=torch.int32, device=device)
        numbers = self.host.numpy()
        self.fields = numbers[: FIELDS * rows].reshape(FIELDS, rows)
        tables_at = (FIELDS + TILE_FIELDS) * rows
        self.tiles = numbers[FIELDS * rows : tables_at].reshape(rows, TILE_FIELDS)
        self.tables = numbers[tables_at:].reshape(rows, table_width)
        self.batch = TritonBatch(
            attention,
            list(self.device[: FIELDS * rows].view(FIELDS, rows)),
            torch.arange(rows, dtype=torch.int32, device=device),
            self.device[FIELDS * rows : tables_at].view(rows, TILE_FIELDS),
            rows,
            self.device[tables_at:].view(rows, table_width),
        )
        self._filled: list[tuple[list[int], int]] = [([], 0)] * rows
        """The block table of each row, and how many of its blocks have been written."""

    def fill(self, slices: Sequence[SequenceSlice]) -> None:
        """Write a step into the static tensor, with one copy to the device."""
        count = len(slices)
        step = StepRows(slices, self.attention.cache.block_size)
        self.fields[:, count:] = np.array([NO_TOKEN, 0, NO_SLOT, 0])[:, None]
        self.fields[:3, :count] = step.ids, step.positions, step.slots
        self.fields[3] = 0
        self.tiles[:] = 0
        row = np.arange(count)
        self.tiles[:count] = np.stack([row, np.ones_like(row), row, step.positions], 1)
        for index, s in enumerate(slices):
            used = s.num_blocks(self.attention.cache.block_size)
            blocks, written = self._filled[index]
            if blocks is not s.blocks or written > used:
                written = 0
            self.tables[index, written:used] = s.blocks[written:used]
            self._filled[index] = (s.blocks, used)
        self.device.copy_(self.host, non_blocking=True)


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
        self._pool: Any = None
        self._stream: Any = None
        self._buckets: dict[int, Bucket] = {}
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def takes(self, s: SequenceSlice) -> bool:
        """Return whether a graph can compute a sequence's new positions: one, after which a token
        is drawn."""
        return s.count == 1 and s.complete and s.ids[0] >= 0

    def run(self, slices: Sequence[SequenceSlice]) -> tuple[Tensor, Tensor] | None:
        """Compute sequences that `takes` accepts; None without a graph for so many.

        Returns:
            Logits float32 [N, vocab], and int32 [3, N]: the likeliest tokens, whether their logits
            are finite, and whether keys and values are. They are valid until the next call: the
            graphs share their memory.
        """
        if not self.enabled or not slices or len(slices) > BUCKETS[-1]:
            return None
        rows = BUCKETS[bisect_left(BUCKETS, len(slices))]
        if rows not in self._buckets:
            self._buckets[rows] = Bucket(self.attention, rows, self.table_width)
        bucket = self._buckets[rows]
        bucket.fill(slices)
        if rows not in self._graphs and not self._capture(bucket):
            return None
        graph, logits, outcome = self._graphs[rows]
        graph.replay()
        count = len(slices)
        return logits[:count], outcome[:, :count]

    def compute(self, batch: TritonBatch) -> tuple[Tensor, Tensor]:
        """Compute a step; all of it can be captured."""
        embeds = self.language.embed_rows(batch.ids)
        hidden = self.language.model(embeds, batch.positions, batch)
        logits = self.language.logits(hidden, self.vocab)
        maxima, tokens = logits.max(-1)
        return logits, torch.stack([tokens.int(), maxima.isfinite().int(), 1 - batch.damaged])

    def _record(self, graph: torch.cuda.CUDAGraph, batch: TritonBatch) -> tuple[Tensor, Tensor]:
        """Record a step on the current device into a graph; return where it leaves its results."""
        # Graphs that share memory share a stream. PyTorch's default is one for all devices.
        stream = self._stream = self._stream or torch.cuda.Stream(priority=-1)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries allocate and compile at the first call
            self.compute(batch)
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, self._pool, stream, capture_error_mode="thread_local"):
            return self.compute(batch)

    def _capture(self, bucket: Bucket) -> bool:
        """Capture the graph of a bucket; if that fails, say so once and do without graphs."""
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.device(bucket.device.device):
                logits, outcome = self._record(graph, bucket.batch)
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
        bucket.device.copy_(bucket.host, non_blocking=True)
        self._graphs[bucket.rows] = (graph, logits, outcome)
        return True
