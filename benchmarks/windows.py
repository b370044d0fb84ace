"""Show how long clips of cameras that were attached together wait: windows spread, and not.

    .venv/bin/python benchmarks/windows.py [--cameras 50] [--window 10] [--load 0.5 0.7 0.9]
        [--json]

Nothing is timed, so the machine does not matter. The service's own code gathers the frames of
cameras that were all attached at the same moment, one frame a second, into windows, and says when
each is asked about. Those clips are given, in that order, to one model that answers one after the
other, each in the same time: `--load` is the share of its time that it needs for all of them. Not
spread means that the hash by which each stream shifts its windows is taken as 0. The windows of the
first minute, in which they move apart, are not counted.
"""

import argparse
from statistics import median
from typing import Any
from unittest.mock import patch

from report import percentiles, publish

from streamer.domain.frame import FrameRef
from streamer.domain.stream import StreamSpec
from streamer.domain.watch import Watch
from workers.ingest.stream_watches import StreamWatches
from workers.ingest.windows import Window

MINUTES = 10
FIRST = 60.0
"""Seconds after which clips count."""


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, default=50)
    parser.add_argument("--window", type=float, default=10.0, help="seconds")
    parser.add_argument("--load", type=float, nargs="+", default=[0.5, 0.7, 0.9])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = [f"str_{number:016x}" for number in range(options.cameras)]
    spread = asked_at(names, options.window)
    with patch("workers.ingest.stream_watches._share_of", lambda _: 0.0):
        together = asked_at(names, options.window)
    found, rows = [], []
    for load in options.load:
        seconds = load * options.window / options.cameras
        one: dict[str, Any] = {"load": load, "seconds_a_clip": seconds}
        for name, times in (("together", together), ("spread", spread)):
            waits = waits_of(times, seconds)
            one |= {f"{name}_p50": median(waits), f"{name}_p95": percentiles(waits, 95)[0]}
        found.append(one)
        rows.append([f"{load:.0%}", *list(one.values())[1:]])
    header = ["load", "s a clip", "together: p50 s", "p95", "spread: p50 s", "p95"]
    publish({"cameras": options.cameras, "window": options.window, "rows": found}, header, rows)


def asked_at(stream_ids: list[str], window: float) -> list[float]:
    """Return when each window of some streams is asked about, in seconds after their start."""
    asked: list[float] = []
    for stream_id in stream_ids:
        watch = Watch(prompt="What is there?", window=window)
        spec = StreamSpec(id=stream_id, name="camera", url="", live=True, watches=[watch])

        def submit(_spec: StreamSpec, _watch: Watch, gathered: Window) -> None:
            asked.append(max(gathered.end, gathered.frames[-1].pts))

        watches = StreamWatches(spec, submit)
        for second in range(60 * MINUTES):
            watches.advance(second)
            watches.add(frame(stream_id, float(second)), quiet=0.0)
    return sorted(asked)


def frame(stream_id: str, second: float) -> FrameRef:
    """Return a frame of a moment."""
    return FrameRef(
        stream_id=stream_id,
        id=f"{1000 * second:.0f}-0",
        time=second,
        pts=second,
        width=640,
        height=480,
        change=0.1,
    )


def waits_of(asked: list[float], seconds: float) -> list[float]:
    """Return how long the clips wait for a model that answers one in `seconds`."""
    free, waits = 0.0, []
    for moment in asked:
        begins = max(free, moment)
        free = begins + seconds
        if moment >= FIRST:
            waits.append(begins - moment)
    return waits


if __name__ == "__main__":
    main()
