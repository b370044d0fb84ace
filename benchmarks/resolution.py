"""Measure the vision tokens of a camera-hour under each resolution policy, with the tile cache.

    .venv/bin/python benchmarks/resolution.py [VIDEO] [--fps 1] [--window 10] [--json]

Frames are processed as in the service: sampled, measured, stored as JPEG, planned window by window,
opened at the scale of the plan, and cut into tiles of 448 pixels. The model is a random one with
NVILA-Lite's tile and token sizes; it prepares prompts and generates nothing. The default VIDEO is
vtest.avi of Debian's package opencv-doc, a street seen by a surveillance camera (768x576, 79.5 s).

The line below the table is the time to measure a 1920x1080 frame on one core.
"""

import argparse
import gzip
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from PIL import Image
from report import publish

from nvila_core import NVILA, Budget, Measures, Meter, Plan, Video
from nvila_core.checkpoint.random_checkpoint import Shape, write_checkpoint
from nvila_core.engine.prefix_keys import hash_tiles
from nvila_core.engine.tile_cache import TileCache
from streamer.frames.jpeg import from_jpeg, to_bgr, to_jpeg
from streamer.media.sampler import FpsSampler
from streamer.media.source import Source
from streamer.settings import Settings

FOOTAGE = Path("/usr/share/doc/opencv-doc/examples/data")
PICTURES = "native, each frame a picture"
LOOKS = (
    ("native", None),
    ("fixed:1", None),
    (PICTURES, None),
    ("adaptive", None),
    ("adaptive", 2 * 121 * 10),
)
"""Policies, each with its budget of vision tokens for a clip."""
TOLERANCES = (0.0, 0.02, 0.05)
CACHE_BYTES = 2**28


def footage(folder: Path) -> Path:
    """Return the path of vtest.avi, unpacked into `folder` if necessary."""
    video, packed = FOOTAGE / "vtest.avi", FOOTAGE / "vtest.avi.gz"
    if video.is_file():
        return video
    if not packed.is_file():
        sys.exit(
            "vtest.avi is not installed: install Debian's package opencv-doc, or pass a VIDEO."
        )
    with gzip.open(packed) as source, (folder / "vtest.avi").open("wb") as target:
        shutil.copyfileobj(source, target)
    return folder / "vtest.avi"


def sample(video: Path, fps: float) -> tuple[list[bytes], list[Measures], float]:
    """Return JPEGs and measures of the sampled frames, and the seconds that they span."""
    sampler, meter = FpsSampler(fps), Meter(bgr=True)
    jpegs, measures = [], []
    with Source(str(video), live=False, sampler=lambda: sampler) as source:
        for frame in source:
            if sampler.keep(frame.pts, frame.image):
                bgr = to_bgr(frame.image)
                measures.append(meter.measure(bgr))
                jpegs.append(to_jpeg(bgr, Settings().jpeg_quality))
    return jpegs, measures, len(jpegs) / fps


def clips(frames: int, length: int) -> list[range]:
    """Return the frames of each window."""
    return [range(i, min(i + length, frames)) for i in range(0, frames, length)]


class Camera:
    """One camera under one policy: counts tiles, and those that each cache lacks."""

    def __init__(self, model: NVILA, policy: str, budget: int | None) -> None:
        self.model, self.policy, self.budget = model, policy, Budget(budget)
        self.caches = [TileCache(CACHE_BYTES, tolerance) for tolerance in TOLERANCES]
        self.frames = self.tiles = 0
        self.encoded = [0] * len(TOLERANCES)

    def see(self, jpegs: Sequence[bytes], measures: Sequence[Measures]) -> None:
        """Count one clip."""
        self.frames += len(jpegs)
        if self.policy == PICTURES:
            for jpeg, seen in zip(jpegs, measures, strict=True):
                self._show([Image.fromarray(from_jpeg(jpeg, seen.width, seen.height))])
            return
        plan = self.model.plan(list(measures), self.policy, self.budget)
        side = self.model.config.processor.size
        pictures = [
            from_jpeg(jpeg, seen.width, seen.height, (side * grid[0], side * grid[1]))
            for jpeg, seen, grid in zip(
                jpegs, measures, (frame.grid for frame in plan.frames), strict=True
            )
        ]
        self._show([Video(pictures, sampled=True)], plan)

    def _show(self, parts: list[object], plan: Plan | None = None) -> None:
        prompt = self.model.prepare([*parts, "Describe."], plan=plan)
        self.tiles += prompt.tiles
        keys = hash_tiles(prompt)
        nothing = torch.zeros(121, 1)
        for number, cache in enumerate(self.caches):
            for key, pixels in zip(keys, prompt.pixels, strict=True):
                (found,) = cache.resolve([key], pixels[None])
                if cache.get(found) is None:
                    self.encoded[number] += 1
                    cache.put(found, nothing, pixels)


def measuring_ms(rounds: int = 60) -> list[float]:
    """Return CPU milliseconds to measure a 1920x1080 frame on one core: median and lowest."""
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (108, 192, 3), np.uint8)
    large = cv2.resize(coarse, (1920, 1080), interpolation=cv2.INTER_CUBIC)
    picture = np.asarray(large, np.uint8)
    frames = [np.roll(picture, shift, axis=1) for shift in (0, 7)]
    meter, spent = Meter(), []
    for number in range(rounds):
        began = time.thread_time()
        meter.measure(frames[number % 2])
        spent.append(1000 * (time.thread_time() - began))
    return [median(spent), min(spent)]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", nargs="?", type=Path)
    parser.add_argument("--fps", type=float, default=1.0, help="frames sampled per second")
    parser.add_argument("--window", type=float, default=10.0, help="seconds in a clip")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        video = options.video or footage(Path(folder))
        jpegs, measures, seconds = sample(video, options.fps)
        model = NVILA.from_pretrained(
            write_checkpoint(Path(folder) / "lite", Shape(image=448, context=2**17))
        )
        rows, cameras = [], []
        for policy, budget in LOOKS:
            camera = Camera(model, policy, budget)
            for clip in clips(len(jpegs), max(1, round(options.window * options.fps))):
                camera.see([jpegs[i] for i in clip], [measures[i] for i in clip])
            cameras.append(camera)
    hours, tokens = seconds / 3600, model.config.tile_tokens
    for camera in cameras:
        name = camera.policy + (f", {camera.budget.tokens} a clip" if camera.budget.tokens else "")
        counts = [camera.tiles, *camera.encoded]
        hourly = [f"{count * tokens / hours:,.0f}" for count in counts]
        rows.append([name, camera.tiles / camera.frames, *hourly])
    median_ms, lowest_ms = measuring_ms()
    header = ["", "tiles a frame", "vision tokens an hour"]
    header += [
        f"encoded, tolerance {t:g}" if t else "encoded, equal tiles once" for t in TOLERANCES
    ]
    result = {
        "video": video.name,
        "seconds": seconds,
        "measure_ms": {"median": median_ms, "lowest": lowest_ms},
        "rows": [dict(zip(header, row, strict=True)) for row in rows],
    }
    publish(result, header, rows)
    if not options.json:
        print(
            f"\nmeasuring a 1920x1080 frame: {median_ms:.1f} ms (median), {lowest_ms:.1f} (lowest)"
        )


if __name__ == "__main__":
    main()
