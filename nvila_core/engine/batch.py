"""One step of the language model over many sequences: one row for each new position, no padding.

Prefill chunks and single new tokens of any number of sequences lie one after another in one batch.
All layers but attention work on rows, whatever sequence they belong to; attention reads each
sequence's own blocks of the cache. How it does so depends on the device: `GroupedAttention` on a
processor, `TritonAttention` on a GPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from nvila_core.models.attention import AttentionBackend

NO_TOKEN = -1
"""Id of a position that holds a picture's features."""


@dataclass(frozen=True)
class SequenceSlice:
    """`count` new positions of one sequence from `start` on, and the sequence's block table.

    Attributes:
        ids: the token of each new position, or NO_TOKEN; empty: NO_TOKEN everywhere.
        complete: whether the next token is drawn from the last position.
    """

    start: int
    count: int
    blocks: list[int]
    ids: Sequence[int] = ()
    complete: bool = True

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.start + self.count

    def num_blocks(self, block_size: int) -> int:
        """Return the number of blocks up to the end."""
        return -(-self.end // block_size)


class Batch(AttentionBackend, Protocol):
    """The rows of one step, and their attention.

    Attributes:
        order: for each sequence of the batch, in order of rows, its index among the slices.
        ids: [N], the token of every row, or NO_TOKEN.
        positions: [N], the position of every row in its sequence.
        slots: [N], where the cache keeps the row (block * block size + offset).
        last_rows: [M], the last row of each complete sequence.
    """

    order: list[int]
    ids: Tensor
    positions: Tensor
    slots: Tensor
    last_rows: Tensor

    def are_finite(self) -> Tensor:
        """Return bool [N]: whether the keys and values of each row are finite in all layers.

        Finite logits do not prove it: an infinite key can have weight 0 for one query, and make
        the scores of another NaN.
        """
        ...


class AttentionPlanner(Protocol):
    """Attention of a device over a cache: one plan a step, then one call a layer."""

    def plan(self, slices: Sequence[SequenceSlice]) -> Batch:
        """Return the batch of the new positions of each sequence."""
        ...


class StepRows:
    """The rows of a step on the host.

    Attributes:
        ids, positions, slots, last_rows: int64, see `Batch`.
    """

    def __init__(self, slices: Sequence[SequenceSlice], block_size: int) -> None:
        if all(s.count == 1 for s in slices):  # a few numbers: NumPy takes longer
            self.ids = np.array([s.ids[0] if s.ids else NO_TOKEN for s in slices], np.int64)
            self.positions = np.array([s.start for s in slices], np.int64)
            places = [divmod(s.start, block_size) for s in slices]
            self.slots = np.array(
                [
                    s.blocks[index] * block_size + offset
                    for s, (index, offset) in zip(slices, places, strict=True)
                ],
                np.int64,
            )
            self.last_rows = np.flatnonzero([s.complete for s in slices])
            return
        empty = np.zeros(0, np.int64)
        no_token = np.full(1, NO_TOKEN, np.int64)
        self.ids = np.concatenate(
            [empty, *(np.asarray(s.ids) if s.ids else no_token.repeat(s.count) for s in slices)],
            dtype=np.int64,
        )
        self.positions = np.concatenate([empty, *(np.arange(s.start, s.end) for s in slices)])
        self.slots = np.concatenate([empty, *(_slots(s, block_size) for s in slices)])
        ends = np.cumsum([s.count for s in slices], dtype=np.int64) - 1
        self.last_rows = ends[[s.complete for s in slices]] if slices else empty


def _slots(s: SequenceSlice, block_size: int) -> NDArray[np.int64]:
    positions = np.arange(s.start, s.end)
    first = s.start // block_size
    blocks = np.asarray(s.blocks[first : s.num_blocks(block_size)], np.int64)
    return blocks[positions // block_size - first] * block_size + positions % block_size
