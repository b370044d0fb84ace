"""Measure what it saves that the clips of a stream go to the model worker that knows it.

    .venv/bin/python benchmarks/affinity.py [--workers 2 4] [--streams 8] [--watches 3]
        [--windows 6] [--frames 4] [--json]

Real model workers with the demo checkpoint answer the watches of rendered streets: for each window
of each stream its frames are stored and a clip of each watch is submitted; as many streams as there
are workers have clips in flight. Once with affinity, and once with workers that take any clip. All
counts are from the second window on. Encoded tiles are those of the vision tower; a cached tile or
token is one that the worker had already. CPU time is that of all workers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import psutil
from report import publish

from nvila_core.demo.video import StreetVideo
from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.local.process import spawn, stop
from streamer.local.redis_server import EmbeddedServer
from streamer.queues import affinity

PROMPTS = ("Describe the scene.", "How many people are there?", "What does the sign say?", "Why?")

ANY = ("--take-any",)
"""Argument of a program that takes any clip, or submits clips for workers that do."""

COUNTS = ("encoded_tiles", "tiles", "cached_tiles", "prompt_tokens", "cached_tokens", "finished")


def take_any() -> None:
    """Let this process know no worker of any stream. Call it before jobs are imported."""
    known = "redis.call('GET', worker_key(queue, stream))"
    assert known in affinity.WAKE
    assert known in affinity.TAKE
    affinity.WAKE = affinity.WAKE.replace(known, "false")
    affinity.TAKE = affinity.TAKE.replace(known, "false")


class Fleet:
    """Model workers, and what they have counted."""

    def __init__(self, number: int, url: str, folder: Path, arguments: list[str]) -> None:
        self._logs = [folder / f"worker-{n}.log" for n in range(number)]
        environment = os.environ | {
            "STREAMER_REDIS_URL": url,
            "STREAMER_DATA_DIR": str(folder),
            "STREAMER_MODEL": "demo",
            "OMP_NUM_THREADS": "1",
        }
        program = [sys.executable, __file__, "--worker", *arguments]
        self._started = [spawn(program, env=environment, log=log) for log in self._logs]

    def wait_ready(self) -> None:
        """Wait until each has loaded its model."""
        for process, log in zip(self._started, self._logs, strict=True):
            while not log.exists() or '"ready"' not in log.read_text():
                if process.poll() is not None:
                    raise SystemExit(log.read_text())
                time.sleep(0.2)

    def cpu(self) -> float:
        """Return the CPU seconds of all workers so far."""
        times = [psutil.Process(process.pid).cpu_times() for process in self._started]
        return sum(each.user + each.system for each in times)

    def counts(self, client: Any, finished: int) -> dict[str, int]:
        """Return the sums of what they have counted, once they have reported `finished` clips."""
        while True:
            reported = [client.hgetall(key) for key in client.keys(redis_keys.worker("*"))]
            found = {
                name: sum(int(each.get(name.encode(), 0)) for each in reported) for name in COUNTS
            }
            if len(reported) == len(self._started) and found["finished"] >= finished:
                return found
            time.sleep(0.2)

    def stop(self) -> None:
        """Stop all workers."""
        for process in self._started:
            stop(process, 30.0)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the workers of one run counted."""
    from streamer.redis_client.connections import Connections
    from streamer.settings import Settings
    from workers.context import WorkerContext

    (number,) = options.workers
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        with EmbeddedServer(folder / "redis", persistent=False, max_memory=None) as server:
            fleet = Fleet(number, server.url, folder, list(ANY) if options.take_any else [])
            settings = Settings(redis_url=server.url, data_dir=folder, frame_ttl=3600.0)
            try:
                fleet.wait_ready()
                with Connections(settings) as connections:
                    own = WorkerContext(settings, connections)
                    each = options.streams * options.watches
                    play(own, number, options, windows=range(1))
                    before, cpu = fleet.counts(own.connections.main, each), fleet.cpu()
                    play(own, number, options, windows=range(1, options.windows))
                    cpu = fleet.cpu() - cpu
                    after = fleet.counts(own.connections.main, each * options.windows)
            finally:
                fleet.stop()
    counted = {name: after[name] - before[name] for name in COUNTS}
    return {
        "workers": number,
        "affinity": not options.take_any,
        "clips": counted["finished"],
        "encoded_tiles": counted["encoded_tiles"] / counted["finished"],
        "cached_tiles": counted["cached_tiles"] / max(1, counted["tiles"]),
        "cached_tokens": counted["cached_tokens"] / max(1, counted["prompt_tokens"]),
        "cpu_ms": 1000 * cpu / counted["finished"],
    }


def play(own: Any, workers: int, options: argparse.Namespace, windows: range) -> None:
    """Submit the clips of some windows of all streams, and wait for their results."""
    from streamer.domain.request import ClipRequest
    from streamer.domain.stream import StreamSpec
    from streamer.domain.timestamp import utc_now
    from streamer.domain.watch import Watch

    client = own.connections.main
    submitted = client.xlen(redis_keys.RESULTS)
    for window in windows:
        for stream in range(options.streams):
            watches = [
                Watch(id=f"wch_{stream}_{n}", prompt=PROMPTS[n], max_tokens=24)
                for n in range(options.watches)
            ]
            spec = StreamSpec(
                id=f"str_{stream}", name=f"street-{stream}", url="", live=False, watches=watches
            )
            refs = []
            for n in range(options.frames):
                picture = StreetVideo(stream, 600.0).frame_at(float(window * options.frames + n))
                jpeg = cv2.imencode(".jpg", picture[..., ::-1])[1].tobytes()
                height, width = picture.shape[:2]
                shape = Measures(width, height, change=0.1)
                refs.append(own.frames.put(spec.id, jpeg, shape, time=time.time(), pts=n))
            while submitted - client.xlen(redis_keys.RESULTS) > (workers - 1) * options.watches:
                time.sleep(0.01)
            for watch in watches:
                clip = ClipRequest.for_watch(
                    spec, watch, start=utc_now(), end=utc_now(), frames=refs
                )
                own.jobs.submit(clip)
                submitted += 1
    while client.xlen(redis_keys.RESULTS) < submitted:
        time.sleep(0.05)


def run(workers: int, arguments: list[str], *more: str) -> dict[str, Any]:
    """Measure in a process of its own."""
    program = [sys.executable, __file__, *arguments, "--one", "--workers", str(workers), *more]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--watches", type=int, default=3, choices=range(1, len(PROMPTS) + 1))
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    for internal in ("--one", "--worker", *ANY):
        parser.add_argument(internal, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.take_any:
        take_any()
    if options.worker:
        from workers.gpu.__main__ import main as serve

        sys.argv[1:] = []
        sys.exit(serve())
    if options.one:
        print(json.dumps(measure(options)))
        return
    names = ("streams", "watches", "windows", "frames")
    given = [part for name in names for part in (f"--{name}", str(getattr(options, name)))]
    found = [run(workers, given, *more) for workers in options.workers for more in ((), ANY)]
    rows = [
        [
            one["workers"],
            "yes" if one["affinity"] else "no",
            one["encoded_tiles"],
            f"{one['cached_tiles']:.0%}",
            f"{one['cached_tokens']:.0%}",
            one["cpu_ms"],
        ]
        for one in found
    ]
    header = ["workers", "affinity", "encoded tiles a clip", "cached tiles", "cached tokens"]
    header.append("worker CPU ms a clip")
    publish({"benchmark": "affinity", "rows": found}, header, rows)


if __name__ == "__main__":
    main()
