"""How long the parts of an engine's step take on this machine, for `tune`."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nvila_core.engine.batch import PagedBatch, SequenceSlice
from nvila_core.engine.engine import BLOCK_SIZE, Engine
from nvila_core.model import NVILA

CLIP_FRAMES = 8
TEXT = 64
"""Positions of system prompt and question beside the frames, about."""

TIMES = 4
"""How often a size is timed, the first time to warm up; the fastest counts."""

ENOUGH = 0.5
"""Seconds after which it is not timed once more."""


@dataclass(frozen=True)
class Load:
    """A request as the service makes them: frames of one tile each, and tokens to answer with."""

    frames: int = CLIP_FRAMES
    answer: int = 32

    def positions(self, model: NVILA) -> int:
        """Positions to read."""
        each: int = model.config.tile_tokens + 1
        return self.frames * each + TEXT


class Gauges:
    """Times pieces of work on a model, by itself.

    Args:
        model: nothing else may run on it meanwhile.
        positions: room for keys and values, which bounds what can be timed.
    """

    def __init__(self, model: NVILA, positions: int) -> None:
        self.model = model
        self.engine = Engine(model, kv_cache_tokens=positions, tile_cache_bytes=0)
        self.blocks = self.engine.cache.num_blocks
        self.length = min(Load().positions(model), model.max_model_len - 1, positions - 1)

    def tiles(self, count: int) -> float:
        """Seconds for `count` tiles through tower and projector together."""
        size = self.model.config.vision.image_size
        pixels = torch.zeros(count, 3, size, size)
        return self._fastest(lambda: self.model.encode_tiles(pixels))

    def reading(self, count: int) -> float:
        """Seconds for `count` positions of one prompt, with as many of a clip before them."""
        start = min(self.length // 2, max(0, self.blocks * BLOCK_SIZE - count))
        return self._step(
            [SequenceSlice(start, count, list(range(-(-(start + count) // BLOCK_SIZE))))]
        )

    def generating(self, count: int) -> float:
        """Seconds for one token of each of `count` sequences that have read a clip."""
        own = -(-(self.length + 1) // BLOCK_SIZE)
        rows = [
            SequenceSlice(self.length, 1, list(range(i * own, (i + 1) * own))) for i in range(count)
        ]
        return self._step(rows)

    def most_sequences(self) -> int:
        """How many `generating` has room for."""
        return max(1, self.blocks // -(-(self.length + 1) // BLOCK_SIZE))

    def request(self, load: Load, tiles: int, positions: int, sequences: int) -> float:
        """Seconds for a request out of many, with so many tiles, positions and sequences a step."""
        return (
            load.frames * self.tiles(tiles) / tiles
            + load.positions(self.model) * self.reading(positions) / positions
            + load.answer * self.generating(sequences) / sequences
        )

    def _step(self, rows: Sequence[SequenceSlice]) -> float:
        language = self.model.language
        heads = self.model.config.num_heads
        total = sum(r.count for r in rows)
        ends = range(total - len(rows), total)

        def step() -> None:
            batch = PagedBatch(self.engine.cache, rows, heads)
            embeds = language.embed([0] * total)
            hidden = language.forward_step(embeds, batch.positions, batch, ends)
            language.logits(hidden, language.num_embeddings).argmax(-1).tolist()

        return self._fastest(step)

    @torch.inference_mode()
    def _fastest(self, call: Callable[[], object]) -> float:
        times: list[float] = []
        while len(times) < TIMES and sum(times) < ENOUGH:
            began = time.perf_counter()
            call()
            self._finish()
            times.append(time.perf_counter() - began)
        return min(times)

    def _finish(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()


def sweep(
    gauge: Callable[[int], float],
    sizes: Sequence[int],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Seconds for one unit, by size: as many of the growing `sizes` as there is time and memory.

    Sizes that would take more than what is left of `seconds`, judged by the one before, are left
    out; the first one is always tried.
    """
    costs: dict[int, float] = {}
    ends = clock() + seconds
    spent, before = 0.0, 0
    for size in sizes:
        if before and clock() + spent * size / before > ends:
            break
        began = clock()
        try:
            costs[size] = gauge(size) / size
        except torch.OutOfMemoryError:
            break
        spent, before = clock() - began, size
    return costs


def cheapest(costs: dict[int, float], tolerance: float, default: int) -> int:
    """The smallest size whose cost is within `tolerance` (a share) of the lowest.

    Where that is the largest of `costs`, still larger ones may be better: then at least `default`.
    """
    limit = min(costs.values()) * (1 + tolerance)
    best = min(size for size, cost in costs.items() if cost <= limit)
    return max(best, default) if best == max(costs) else best
