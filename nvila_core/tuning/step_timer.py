"""Time the parts of an engine step on this machine, for the tuner."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from nvila_core.engine.batch import SequenceSlice
from nvila_core.engine.engine import BLOCK_SIZE, Engine
from nvila_core.model import NVILA

TEXT_POSITIONS = 64
"""Approximate number of positions of the system prompt and the question."""
MAX_REPEATS = 4
"""Repeats per measurement, the first one to warm up; the fastest counts."""
_MAX_SECONDS = 0.5
"""Total duration after which a measurement is not repeated."""


@dataclass(frozen=True)
class Load:
    """A request like the service's: a number of one-tile frames, and of answer tokens."""

    frames: int = 8
    answer: int = 32

    def positions(self, model: NVILA) -> int:
        """Return the number of positions of the prompt."""
        positions_per_frame: int = model.config.tile_tokens + 1
        return self.frames * positions_per_frame + TEXT_POSITIONS


class StepTimer:
    """Times single operations on a model.

    Args:
        model: must not run anything else at the same time.
        positions: positions of the key-value cache, which limit what can be timed.
    """

    def __init__(self, model: NVILA, positions: int) -> None:
        self.model = model
        self.engine = Engine(model, kv_cache_tokens=positions, tile_cache_bytes=0)
        self.blocks = self.engine.cache.num_blocks
        self.length = min(Load().positions(model), model.max_model_len - 1, positions - 1)

    def tiles(self, count: int) -> float:
        """Return the seconds that `count` tiles take in the vision tower and the projector."""
        size = self.model.config.vision.image_size
        pixels = torch.zeros(count, 3, size, size)
        return self._fastest(lambda: self.model.encode_tiles(pixels))

    def prefill(self, count: int) -> float:
        """Return the seconds that `count` positions of one prompt take, in the middle of a clip."""
        start = min(self.length // 2, max(0, self.blocks * BLOCK_SIZE - count))
        return self._step(
            [SequenceSlice(start, count, list(range(-(-(start + count) // BLOCK_SIZE))))]
        )

    def decode(self, count: int) -> float:
        """Return the seconds for one token of each of `count` sequences that have read a clip."""
        own = -(-(self.length + 1) // BLOCK_SIZE)
        rows = [
            SequenceSlice(self.length, 1, list(range(i * own, (i + 1) * own))) for i in range(count)
        ]
        return self._step(rows)

    def max_sequences(self) -> int:
        """Return how many sequences `decode` has room for."""
        return max(1, self.blocks // -(-(self.length + 1) // BLOCK_SIZE))

    def request(self, load: Load, tiles: int, positions: int, sequences: int) -> float:
        """Return the seconds for a request out of many.

        Args:
            load: the request.
            tiles: tiles in a step.
            positions: prompt positions in a step.
            sequences: sequences that decode in a step.
        """
        return (
            load.frames * self.tiles(tiles) / tiles
            + load.positions(self.model) * self.prefill(positions) / positions
            + load.answer * self.decode(sequences) / sequences
        )

    def _step(self, rows: Sequence[SequenceSlice]) -> float:
        language = self.model.language
        ids = [0] * max(r.count for r in rows)
        rows = [SequenceSlice(r.start, r.count, r.blocks, ids[: r.count]) for r in rows]

        def step() -> None:
            batch = self.engine.runner.attention.plan(rows)
            embeds = language.embed_rows(batch.ids)
            hidden = language.forward_step(embeds, batch.positions, batch, batch.last_rows)
            language.logits(hidden, language.num_embeddings).argmax(-1).tolist()

        return self._fastest(step)

    @torch.inference_mode()
    def _fastest(self, call: Callable[[], object]) -> float:
        times: list[float] = []
        while len(times) < MAX_REPEATS and sum(times) < _MAX_SECONDS:
            began = time.perf_counter()
            call()
            self._finish()
            times.append(time.perf_counter() - began)
        return min(times)

    def _finish(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize()


def sweep(
    time_size: Callable[[int], float],
    sizes: Sequence[int],
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[int, float]:
    """Measure the cost of one unit for growing sizes, while time and memory last.

    The first size is always measured. A size is left out if, judged by the previous one, it would
    take longer than what is left of `seconds`.

    Args:
        time_size: returns the seconds for a whole size.
        sizes: sizes in ascending order.
        seconds: time to spend.
        clock: returns a time in seconds.

    Returns:
        Seconds for one unit, by size.
    """
    costs: dict[int, float] = {}
    ends = clock() + seconds
    spent, before = 0.0, 0
    for size in sizes:
        if before and clock() + spent * size / before > ends:
            break
        began = clock()
        try:
            costs[size] = time_size(size) / size
        except torch.OutOfMemoryError:
            break
        spent, before = clock() - began, size
    return costs


def cheapest(costs: dict[int, float], tolerance: float, default: int) -> int:
    """Return the smallest size whose cost is within `tolerance` (a share) of the lowest.

    If that is the largest size measured, even larger ones may be better: return at least `default`.
    """
    limit = min(costs.values()) * (1 + tolerance)
    best = min(size for size, cost in costs.items() if cost <= limit)
    return max(best, default) if best == max(costs) else best
