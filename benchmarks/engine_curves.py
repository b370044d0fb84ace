"""Measure how the engine's cost grows with requests, frames and tiles; see engine.py."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine_ratios import asked
from loads import Camera, make_model
from plot import Panel, Series, draw_panels
from rival import Rival

from nvila_core import Engine, Video
from nvila_core.checkpoint.random_checkpoint import Shape

TOGETHER = 4
"""Requests at once where frames or tiles grow."""

MAX_TILES = 12


def ladder(limit: int) -> list[int]:
    """Return 1, 2, 4 ... up to `limit`."""
    return [2**n for n in range(limit.bit_length())]


class Curves:
    """Measures single points of the curves; `clock` as in `Bench`."""

    def __init__(
        self,
        folder: Path,
        shape: Shape,
        dtype: str,
        answer: int,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.clock = clock
        self.rival = Rival(make_model(folder, shape, dtype=dtype))
        self.model = make_model(folder, shape, dtype=dtype)
        self.camera, self.answer = Camera(shape), answer
        self.point("warm up", 1, [self.camera.clip(1)])

    def point(
        self, axis: str, value: int, requests: list[list[Any]], **options: Any
    ) -> dict[str, Any]:
        """Measure an engine that gets all `requests` at once, and the rival on one of them."""
        began = self.clock()
        self.rival.answer(requests[0], self.answer, **options)
        alone = self.clock() - began
        engine = Engine(self.model, 64, 131072)
        began = self.clock()
        handles = [engine.submit(parts, asked(self.answer), **options) for parts in requests]
        while engine.step():
            pass
        spent = self.clock() - began
        return {
            "axis": axis,
            "value": value,
            "positions": handles[0].result().usage.prompt_tokens,
            "seconds": spent,
            "per_second": len(requests) / spent,
            "alone_per_second": 1 / alone,
        }

    def requests(self, count: int) -> dict[str, Any]:
        """Measure `count` requests on 8 frames each."""
        return self.point("requests", count, self.camera.clips(count))

    def frames(self, count: int) -> dict[str, Any]:
        """Measure requests on `count` frames each."""
        clips = self.camera.clips(TOGETHER, count)
        return self.point("frames a clip", count, clips, num_video_frames=count)

    def tiles(self, count: int) -> dict[str, Any]:
        """Measure requests on 8 frames of `count` tiles each, plus a thumbnail if several."""
        videos = [Video([self.camera.frame(count) for _ in range(8)]) for _ in range(TOGETHER)]
        asks: list[list[Any]] = [[video, "What now?"] for video in videos]
        return self.point("tiles a frame", count, asks, policy=f"fixed:{count}")


def measure(curves: Curves, limit: int) -> list[dict[str, Any]]:
    """Measure all points up to `limit`."""
    tiles = sorted({n for n in (1, 2, 4, 6, 9, MAX_TILES) if n <= limit})
    return [
        *(curves.requests(count) for count in ladder(limit)),
        *(curves.frames(count) for count in ladder(limit)),
        *(curves.tiles(count) for count in tiles),
    ]


def draw(points: list[dict[str, Any]]) -> str:
    """Draw the points as an SVG picture."""
    panels = []
    for axis in dict.fromkeys(point["axis"] for point in points):
        own = [point for point in points if point["axis"] == axis]
        series = [
            Series(name, [(p["value"], p[key]) for p in own])
            for name, key in (("engine", "per_second"), ("one at a time", "alone_per_second"))
        ]
        panels.append(Panel(axis, series))
    return draw_panels("Requests a second", panels)
