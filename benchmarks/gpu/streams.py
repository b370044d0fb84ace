"""Captions at the workload of NVIDIA VSS: clips of 80 new frames of a tile, 100 tokens each."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from made import SHAPES, whole

from nvila_core import Engine, SamplingParams, Video

PERIOD = 10.0
"""Seconds of a stream that a clip covers."""


def measure(
    device: torch.device, name: str = "2b", clips: int = 24, frames: int = 80, seconds: float = 40
) -> dict[str, Any]:
    """Return the streams that clips one after another amount to, and latencies at 80 % of that."""
    model = whole(SHAPES[name], device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    side = SHAPES[name].image
    random = np.random.default_rng(0)
    pool = random.integers(0, 256, (64, side, side, 3), dtype=np.uint8)
    made = 0

    def clip() -> Any:
        nonlocal made
        pictures = []
        for n in range(frames):
            made += 1
            picture = pool[(made + n) % len(pool)].copy()
            picture[:8, :8].flat[:8] = np.frombuffer(made.to_bytes(8, "little"), np.uint8)
            pictures.append(picture)
        return model.prepare([Video(pictures), "What now?"], num_video_frames=frames)

    params = SamplingParams(max_tokens=100, ignore_eos=True)
    positions = 500_000 if device.type == "cuda" else 20_000
    found: dict[str, Any] = {}
    with Engine(model, 256, positions) as engine, ThreadPoolExecutor(12) as threads:
        engine.submit(clip(), params).result()
        began = time.perf_counter()
        prompts = list(threads.map(lambda _: clip(), range(clips)))
        found["preparing, on 12 threads"] = {"s a clip": (time.perf_counter() - began) / clips}
        began = time.perf_counter()
        handles = [engine.submit(prompt, params) for prompt in prompts]
        for handle in handles:
            handle.result()
        spent = time.perf_counter() - began
        streams = clips * PERIOD / spent
        found[f"{clips} clips at once"] = {"s": spent, "streams": streams}
        stats = engine.stats()
        found[f"{clips} clips at once"]["ms a step"] = 1000 * spent / stats["steps"]
        load = max(1, int(0.8 * streams))
        count = max(1, min(int(load * seconds / PERIOD), 3 * clips))
        waiting, taken = [threads.submit(clip) for _ in range(count)], []
        prompts = [future.result() for future in waiting]
        began = time.perf_counter()
        asked = []
        for n, prompt in enumerate(prompts):
            due = began + n * PERIOD / load
            time.sleep(max(0.0, due - time.perf_counter()))
            asked.append((due, engine.submit(prompt, params)))

        def wait(pair: Any) -> float:
            pair[1].result()
            return float(time.perf_counter() - pair[0])

        with ThreadPoolExecutor(count) as waiters:
            taken = sorted(waiters.map(wait, asked))
        found[f"{load} streams"] = {
            "clips": count,
            "p50 s (of clips still waiting at the end: later)": taken[len(taken) // 2],
            "p95 s": taken[int(0.95 * (len(taken) - 1))],
        }
        found["engine"] = dict(engine.stats())
    return found
