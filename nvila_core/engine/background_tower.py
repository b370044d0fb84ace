"""Encode tiles on a GPU beside the language model: on a stream of its own, of lower priority.

The thread of the engine starts a pass and goes on; the features are there when the pass's event has
happened. What a pass reads and writes has its place: a pinned copy of the pixels and room for the
features in one of a few slots, which is free again when its features have been copied. So no memory
changes its owner between streams. The host starts one CUDA graph for all of a pass's kernels, as
a thread that starts four hundred of them starts no step of the language model meanwhile.
"""

import warnings
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nvila_core.errors import first_line
from nvila_core.media.preprocess import Processor, look_up_levels
from nvila_core.model import NVILA
from nvila_core.models.staging import stage
from nvila_core.models.vision_tower import MAX_TILES_PER_PASS

TILE_BUCKETS = (1, 2, 3, 4, 6, 8, 12, MAX_TILES_PER_PASS)
"""Numbers of tiles that have a graph. A pass of another number is padded to the next larger one."""

MAX_PASSES = 2
"""Passes in flight: while the host learns that one is done, the next one runs."""


class Pass(Protocol):
    """Tiles that are being encoded."""

    def is_done(self) -> bool:
        """Return whether the features are there, without waiting."""
        ...

    def take(self) -> tuple[list[Tensor], list[bool]]:
        """Return the features of each tile, when they are there, and whether they are finite.

        To be called once: another pass may then use the memory.
        """
        ...


class Tower(Protocol):
    """Encodes tiles while its caller does other things."""

    max_tiles: int
    """Tiles in a pass."""

    def has_room(self) -> bool:
        """Return whether another pass can be started."""
        ...

    def start(self, tiles: Sequence[NDArray[np.uint8]], processor: Processor) -> Pass:
        """Start to encode tiles [S, S, 3] that are normalised alike, at most `max_tiles`."""
        ...


class PassMemory:
    """The memory of one pass that outlives it.

    Attributes:
        pixels: uint8 [tiles, S, S, 3], pinned.
        features: [tiles, tokens, D], on the device; None before the first pass.
        finite: int32 [tiles], pinned, 1 where a tile's features are.
        done: happens when features and flags are there.
        taken: happens when the features have been copied.
    """

    def __init__(self, size: int) -> None:
        shape = (MAX_TILES_PER_PASS, size, size, 3)
        self.pixels = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self.finite = torch.zeros(MAX_TILES_PER_PASS, dtype=torch.int32, pin_memory=True)
        self.features: Tensor | None = None
        self.done: Any = torch.cuda.Event(blocking=True)
        self.taken: Any = torch.cuda.Event()


class StreamPass:
    """A pass of a `BackgroundTower`; see `Pass`."""

    def __init__(self, tower: "BackgroundTower", slot: PassMemory, count: int) -> None:
        self._tower, self._slot, self._count = tower, slot, count

    def is_done(self) -> bool:
        """Return whether the features are there, without waiting."""
        return bool(self._slot.done.query())

    def take(self) -> tuple[list[Tensor], list[bool]]:
        """Return the features of each tile and whether they are finite; see `Pass.take`."""
        slot = self._slot
        slot.done.synchronize()
        finite = [bool(flag) for flag in slot.finite.numpy()[: self._count]]
        assert slot.features is not None
        # Each tile by itself, so that keeping one does not keep the whole pass; in one launch.
        features = list(slot.features[: self._count].unbind())
        copies = [torch.empty_like(one) for one in features]
        torch._foreach_copy_(copies, features)
        slot.taken.record()
        self._tower.release(slot)
        return copies, finite


class BackgroundTower:
    """Encodes tiles on a stream of lower priority than the caller's; see `Tower`.

    Args:
        model: its vision tower and projector are used.
    """

    max_tiles = MAX_TILES_PER_PASS

    def __init__(self, model: NVILA) -> None:
        self.model, self.device = model, model.device
        self.size = model.config.vision.image_size
        self.stream: Any = torch.cuda.Stream(model.device, priority=0)
        self.enabled = True
        """Whether passes are run as graphs."""
        self.pixels = torch.zeros(
            (self.max_tiles, self.size, self.size, 3), dtype=torch.uint8, device=self.device
        )
        self.table = torch.zeros((3, 256), device=self.device)
        self._processor: Processor | None = None
        self._free = [PassMemory(self.size) for _ in range(MAX_PASSES)]
        self._graphs: dict[int, tuple[Any, Tensor, Tensor]] = {}
        self._pool: Any = None
        self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def has_room(self) -> bool:
        """Return whether another pass can be started."""
        return bool(self._free)

    def release(self, slot: PassMemory) -> None:
        """Take a slot back whose features have been copied, or are being copied."""
        self._free.append(slot)

    def start(self, tiles: Sequence[NDArray[np.uint8]], processor: Processor) -> StreamPass:
        """Start to encode tiles; see `Tower.start`.

        Raises:
            RuntimeError: there is no memory for the pass; nothing has been started.
        """
        slot, count = self._free[-1], len(tiles)
        for place, tile in zip(slot.pixels.numpy(), tiles, strict=False):
            place[:] = tile
        with torch.cuda.device(self.device), torch.cuda.stream(self.stream):
            self.stream.wait_event(slot.taken)
            self.pixels[:count].copy_(slot.pixels[:count], non_blocking=True)
            if processor != self._processor:
                self.table.copy_(stage([processor.table], self.device)[0])
                self._processor = processor
            features, finite = self._run(count)
            if slot.features is None:
                shape = (self.max_tiles, *features.shape[1:])
                slot.features = torch.empty(shape, dtype=features.dtype, device=self.device)
            slot.features[:count].copy_(features[:count])
            slot.finite[:count].copy_(finite[:count], non_blocking=True)
            slot.done.record(self.stream)
        self._free.pop()
        return StreamPass(self, slot, count)

    def compute(self, count: int) -> tuple[Tensor, Tensor]:
        """Encode the first tiles of `pixels`: features, and int32 [tiles], 1 where they are finite.

        All of it can be captured.
        """
        features = self.model.encode_tiles(look_up_levels(self.pixels[:count], self.table))
        return features, features.isfinite().flatten(1).all(1).int()

    def _run(self, count: int) -> tuple[Tensor, Tensor]:
        """Encode at least `count` tiles on the current stream, by a graph if that is possible."""
        # The largest first: the graphs share memory, and smaller ones find room in it.
        rows = TILE_BUCKETS[bisect_left(TILE_BUCKETS, count)]
        for wanted in (TILE_BUCKETS[-1], rows):
            if self.enabled and wanted not in self._graphs:
                self._capture(wanted)
        if not self.enabled:
            return self.compute(count)
        graph, features, finite = self._graphs[rows]
        graph.replay()
        return features, finite

    def _capture(self, rows: int) -> None:
        """Capture the graph of a pass; if that fails, say so once and do without graphs."""
        try:
            graph = torch.cuda.CUDAGraph()
            self.compute(rows)  # libraries allocate and choose kernels at the first call
            with torch.cuda.graph(
                graph, self._pool, self.stream, capture_error_mode="thread_local"
            ):
                features, finite = self.compute(rows)
        except RuntimeError as error:
            self.enabled = False
            warnings.warn(
                f"The vision tower runs without CUDA graphs, because capturing one failed "
                f"({first_line(error)}): the language model waits for it longer.",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        self._pool = self._pool or graph.pool()
        self._graphs[rows] = (graph, features, finite)
