"""Measure frames per second through the source and sampler, beside a bare PyAV loop.

    .venv/bin/python benchmarks/decode.py [VIDEO] [--rounds 7] [--fps 1] [--json]

Both decode the same file with the same number of threads. They take turns within each round, and
the order alternates, so that a change in the machine's load affects both; ratios are computed for
each round, and the median round is printed. Without VIDEO, a 1080p30 street is rendered first.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import av
from footage import write_street
from report import publish

from streamer.media.sampler import FpsSampler
from streamer.media.source import Source

SEED = 2_000_000_101


def bare(video: Path) -> int:
    """Decode every frame and discard it."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.thread_count = "AUTO", 4  # what Source gives a recording
        return sum(1 for _ in container.decode(stream))


def ours(video: Path, fps: float) -> int:
    """Decode every frame, compute its time, and sample."""
    sampler = FpsSampler(fps)
    kept = 0
    with Source(str(video), live=False) as source:
        for frame in source:
            kept += sampler.keep(frame.pts)
        assert kept, "nothing was sampled"
        return source.decoded


def measure(run: Callable[[], int]) -> tuple[int, float, float]:
    """Return frames, wall seconds and CPU seconds of one run."""
    wall, cpu = time.perf_counter(), time.process_time()
    frames = run()
    return frames, time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", nargs="?", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--fps", type=float, default=1.0, help="frames sampled per second")
    parser.add_argument("--seconds", type=float, default=10.0, help="of the rendered video")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        video = options.video
        if video is None:
            video = Path(directory) / "street.mp4"
            write_street(video, SEED, options.seconds, fps=30, size=(1920, 1080))
        compare(video, options.rounds, options.fps)


def compare(video: Path, rounds: int, fps: float) -> None:
    """Run both in turns and print the comparison."""
    ways: dict[str, Callable[[], int]] = {
        "bare PyAV loop": lambda: bare(video),
        "Source + FpsSampler": lambda: ours(video, fps),
    }
    for run in ways.values():  # once unmeasured: file cache, code paths
        run()
    runs: dict[str, list[tuple[int, float, float]]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            runs[name].append(measure(ways[name]))
    counts = {frames for measured in runs.values() for frames, _, _ in measured}
    assert len(counts) == 1, f"not the same frames: {counts}"
    rates = {name: [frames / wall for frames, wall, _ in runs[name]] for name in runs}
    cpu = {name: [1000 * used / frames for frames, _, used in runs[name]] for name in runs}
    first, second = ways
    ratio = median(b / a for a, b in zip(rates[first], rates[second], strict=True))
    extra = median(b - a for a, b in zip(cpu[first], cpu[second], strict=True))
    rows = [[name, median(rates[name]), median(cpu[name])] for name in ways]
    rows += [["ratio; difference", ratio, extra]]
    result = {
        "benchmark": "decode",
        "frames": counts.pop(),
        "rounds": rounds,
        "frames_per_second": {name: median(rates[name]) for name in ways},
        "cpu_ms_per_frame": {name: median(cpu[name]) for name in ways},
        "ratio": ratio,
        "extra_cpu_ms_per_frame": extra,
    }
    publish(result, ["", "frames/s", "CPU ms a frame"], rows)


if __name__ == "__main__":
    main()
