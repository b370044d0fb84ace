"""Measure the time from a frame's capture to its caption, by part, on the real pipeline.

    .venv/bin/python benchmarks/latency.py [--clips 30] [--streams 1] [--model demo] [--json]

Starts a local installation (two servers, ingest worker, model worker, recorder, API) in a temporary
folder, serves a rendered street over RTSP on loopback, attaches it and waits for captions. All
numbers come from the result records. The first caption of each stream includes warming up and is
left out.
"""

import argparse
import tempfile
import time
from pathlib import Path

from report import percentiles, publish

from nvila_core.demo.video import StreetVideo, write_video
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.result import Result
from streamer.domain.sampling import Sampling
from streamer.local.installation import Installation
from streamer.local.signals import StopSignals
from streamer.service import CAPTION_PROMPT, Service
from streamer.settings import Settings

SEED = 2_000_000_103
PARTS = ("decode_ms", "queue_ms", "encode_ms", "generate_ms")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=30, help="captions to wait for, per stream")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--window", type=float, default=4.0)
    parser.add_argument("--fps", type=float, default=1.0)
    parser.add_argument("--model", default="demo", help="demo, a folder, or a Hugging Face id")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, StopSignals() as stop:
        results = collect(Path(directory), options, stop)
    failed = [result.error for result in results if result.error is not None]
    if failed:
        raise SystemExit(f"{len(failed)} clips failed, the first: {failed[0].message}")
    report(results, options)


def collect(directory: Path, options: argparse.Namespace, stop: StopSignals) -> list[Result]:
    """Run the pipeline until every stream has its captions."""
    video = directory / "videos" / "street.mp4"
    video.parent.mkdir()
    # Long enough never to repeat: caches would know the repeated frames.
    write_video(video, StreetVideo(SEED, options.window * (options.clips + 5)))
    settings = Settings(data_dir=directory / "data", model=options.model, api_port=0)
    with LoopbackCamera(video) as camera, Installation(settings) as installation:
        installation.start()
        while not installation.ready():
            stop.wait(0.1)
            stop.check()
        with Service(installation.settings) as client:
            last_id = client.queue.last_id()
            for number in range(options.streams):
                client.attach(
                    camera.url,
                    f"camera-{number}",
                    sampling=Sampling(fps=options.fps),
                    watches=[client.watch(CAPTION_PROMPT, window=options.window)],
                )
            found: dict[str, list[Result]] = {}
            deadline = time.monotonic() + 60 + 3 * options.window * (options.clips + 1)
            while len(found) < options.streams or any(
                len(results) <= options.clips for results in found.values()
            ):
                stop.check()
                installation.poll()
                if time.monotonic() > deadline:
                    raise SystemExit(
                        "Timed out waiting for captions: run `streamer demo` to see what fails."
                    )
                for entry_id, result in client.queue.read(last_id, 0.2):
                    last_id = entry_id
                    found.setdefault(result.stream_name or "", []).append(result)
    return [result for results in found.values() for result in results[1 : options.clips + 1]]


def report(results: list[Result], options: argparse.Namespace) -> None:
    """Print the table."""
    values = {part: [part_of(result, part) for result in results] for part in PARTS}
    values["other_ms"] = [
        result.total_ms - sum(part_of(result, part) for part in PARTS) for result in results
    ]
    values["total_ms"] = [result.total_ms for result in results]
    summary = {part: percentiles(values[part], 50, 95) for part in values}
    outcome = {
        "benchmark": "latency",
        "model": results[0].model,
        "streams": options.streams,
        "clips": len(results),
        "frames_per_clip": results[0].frames,
        "vision_tokens_per_clip": results[0].vision_tokens,
        **{part: {"p50": p50, "p95": p95} for part, (p50, p95) in summary.items()},
    }
    publish(outcome, ["milliseconds", "p50", "p95"], [[part, *summary[part]] for part in summary])


def part_of(result: Result, part: str) -> float:
    """Return a part's milliseconds in `total_ms`, which starts at the newest frame's capture."""
    value = float(getattr(result, part))
    # `decode_ms` of a record is the sum over its frames; only the newest counts here.
    return value / max(1, result.frames) if part == "decode_ms" else value


if __name__ == "__main__":
    main()
