"""Measure how well a GPU is used, and how many captioning streams it carries.

Peaks are measured, not taken from a data sheet: the fastest of several large matrix products, and
of several large copies. Random weights of the true shapes cost as much as the published weights.
"""

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_ratios import asked
from loads import make_model
from report import percentiles

from nvila_core import NVILA, Completion, Engine, Video
from nvila_core.checkpoint.footprint import main_memory
from nvila_core.checkpoint.random_checkpoint import Shape
from nvila_core.models.quantize import weight_bytes
from nvila_core.tuning.step_timer import StepTimer

PERIOD = 10.0
"""Seconds of a stream that a caption is about."""

LIMIT = 6.5
"""Seconds from the end of a window within which 95 of 100 captions must be there."""

ANSWER = 100
STEP_TILES, STEP_TOKENS = 32, 2048


def fastest(call: Any, device: torch.device, times: int = 10) -> float:
    """Return the seconds of the fastest of several calls, after one to warm up."""
    found = []
    for _ in range(times + 1):
        began = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return min(found[1:])


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP a second of a large matrix product."""
    side = 8192 if device.type == "cuda" else 512
    a = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / fastest(lambda: a @ a, device)


def peak_bandwidth(device: torch.device) -> float:
    """Return the bytes a second, read and written, of a large copy."""
    size = 2**31 if device.type == "cuda" else 2**26
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / fastest(lambda: target.copy_(source), device)


def tower_flops(model: NVILA) -> float:
    """Return the FLOP of one tile in tower and projector, attention over the full square."""
    vision = model.config.vision
    patches, width = vision.grid**2, vision.hidden_size
    layer = 2 * patches * (4 * width**2 + 2 * width * vision.intermediate_size)
    layer += 4 * patches**2 * width
    embedding = 2 * patches * 3 * vision.patch_size**2 * width
    projector = sum(2 * p.numel() for p in model.projector.parameters()) * model.config.tile_tokens
    return float(vision.layers_run * layer + embedding + projector)


def reading_flops(model: NVILA, count: int, start: int) -> float:
    """Return the FLOP of `count` prompt positions after `start` others, without the output head."""
    config = model.language.config
    queries = model.config.num_heads * model.config.head_dim
    both = model.config.num_kv_heads * model.config.head_dim
    weights = config.hidden_size * (2 * queries + 2 * both + 3 * config.intermediate_size)
    pairs = count * start + count * count // 2
    return config.num_hidden_layers * (2.0 * count * weights + 4.0 * pairs * queries)


def position_bytes(model: NVILA) -> int:
    """Return the bytes of the keys and values of one position."""
    return model.config.kv_size * model.dtype.itemsize


def shares(model: NVILA) -> dict[str, dict[str, Any]]:
    """Measure tower and prefill as shares of peak FLOP/s, decode as a share of bandwidth."""
    device = model.device
    flops, bandwidth = peak_flops(device, model.dtype), peak_bandwidth(device)
    timer = StepTimer(model, positions(model) // 2)
    weights = weight_bytes(model.language)
    if model.language.lm_head is not None:  # only a few rows of the embedding table are read
        weights -= model.language.embedding_table.nbytes
    found = {}

    def add(name: str, done: float, of: float, unit: str) -> None:
        scale = 1e12 if unit == "TFLOP/s" else 1e9
        cells = (f"{done / scale:.3g} {unit}", f"{of / scale:.3g} {unit}", f"{done / of:.0%}")
        found[name] = dict(zip(("measured", "of", "share"), cells, strict=True))

    add(
        f"tower, {STEP_TILES} tiles",
        STEP_TILES * tower_flops(model) / timer.tiles(STEP_TILES),
        flops,
        "TFLOP/s",
    )
    for count in (512, STEP_TOKENS):
        start = min(timer.length // 2, timer.blocks * 16 - count)
        done = reading_flops(model, count, start) / timer.prefill(count)
        add(f"prefill, {count} positions", done, flops, "TFLOP/s")
    for count in (1, 8, 32, 64):
        if count <= timer.max_sequences():
            moved = weights + count * timer.length * position_bytes(model)
            add(
                f"decode, {count} sequences",
                moved / timer.decode(count),
                bandwidth,
                "GB/s",
            )
    return found


def positions(model: NVILA) -> int:
    """Return the positions that the cache has room for: most of the free memory of a GPU."""
    if model.device.type == "cuda":
        free = 0.8 * torch.cuda.mem_get_info(model.device)[0]
    else:
        free = min(2**28, 0.1 * main_memory()[0])
    return min(2**20, int(free / position_bytes(model)) // 16 * 16)


class Streams:
    """Cameras that each ask for a caption every ten seconds, evenly spread over that time."""

    def __init__(self, model: NVILA, shape: Shape, seconds: float) -> None:
        self.model, self.side, self.seconds = model, shape.image, seconds
        self.random = np.random.default_rng(0)
        self.pool = [self._noise(self.side, self.side) for _ in range(64)]
        self.scene = self._noise(720, 1280) // 8 + 90
        self.scene[200:400, 300:700] = self._noise(200, 400)  # something with detail
        self.made = 0

    def _noise(self, height: int, width: int) -> Any:
        return self.random.integers(0, 256, (height, width, 3), dtype=np.uint8)

    def rival_clip(self) -> tuple[Video, dict[str, Any]]:
        """Return 80 new frames of one tile: the workload of NVIDIA VSS."""
        return Video([self._marked(f) for f in (self.pool * 2)[:80]]), {"num_video_frames": 80}

    def camera_clip(self) -> tuple[Video, dict[str, Any]]:
        """Return 10 frames, one a second, of a scene with a moving object; adaptive resolution."""
        frames = [self._marked(self.scene) for _ in range(10)]
        for number, frame in enumerate(frames):
            frame[500:600, 40 + 100 * number : 140 + 100 * number] = 220
        return Video(frames), {"num_video_frames": 10, "policy": "adaptive"}

    def _marked(self, frame: Any) -> Any:
        self.made += 1
        marked = frame.copy()
        marked[:8, :8].flat[:8] = np.frombuffer(self.made.to_bytes(8, "little"), np.uint8)
        return marked

    def engine(self) -> Engine:
        """Return a new engine."""
        room = positions(self.model)
        return Engine(
            self.model, 256, room, max_num_batched_tokens=STEP_TOKENS, step_tiles=STEP_TILES
        )

    def p95(self, count: int, clip: Any) -> float:
        """Return the 95th percentile of seconds to a caption with `count` streams."""
        due: list[float] = []
        taken: list[float] = []

        def ask(moment: float) -> Completion:
            video, options = clip()
            handle = engine.submit([video, "What now?"], asked(ANSWER), **options)
            completion = handle.result()
            taken.append(time.perf_counter() - moment)
            return completion

        waiting: list[Future[Completion]] = []
        with self.engine() as engine, ThreadPoolExecutor(4 * count + 16) as pool:
            began = time.perf_counter()
            due = [began + PERIOD * n / count for n in range(int(count * self.seconds / PERIOD))]
            for moment in due:
                time.sleep(max(0.0, moment - time.perf_counter()))
                waiting.append(pool.submit(ask, moment))
            for future in waiting:
                future.result()
        return percentiles(taken, 95)[0]

    def max_streams(self, clip: Any, limit: int) -> tuple[int, float]:
        """Find the most streams (up to `limit`) whose p95 is within LIMIT; return both numbers."""
        good, p95, bad, count = 0, 0.0, limit + 1, 1
        while bad - good > max(1, good // 16):
            found = self.p95(count, clip)
            if found <= LIMIT:
                good, p95 = count, found
            else:
                bad = count
            count = min(2 * good, limit) if bad > limit and good else (good + bad) // 2
            if count <= good:
                break
        return good, p95


def measure(
    folder: Path, shape: Shape, device: str, dtype: str | None, seconds: float, limit: int
) -> dict[str, dict[str, Any]]:
    """Measure shares of peak, then the number of streams."""
    model = make_model(folder, shape, device, dtype or "auto")
    found = shares(model)
    streams = Streams(model, shape, max(seconds, 2 * PERIOD))
    for name, clip in (
        ("streams, 80 frames in 10 s", streams.rival_clip),
        ("streams, 1 frame/s, adaptive", streams.camera_clip),
    ):
        count, p95 = streams.max_streams(clip, limit)
        found[name] = {"measured": count, "of": f"p95 {p95:.2f} s", "share": ""}
    return found
