"""Measure how many model workers one Redis keeps busy: real workers, jobs and frames, no model.

    .venv/bin/python benchmarks/scale.py [--workers 1 4 16 32] [--rate 2] [--seconds 15]
        [--streams 100] [--frame-bytes 40000] [--json]

Each worker is a process that takes clips, loads their frames from a real server and publishes
results, as `streamer worker` does. In place of a model it has a device that answers one clip after
the other, each in 1/rate seconds, and needs no processor. The queue is never empty. Efficiency is
the number of clips that all workers answered, of those that their devices could have. CPU time
comes from the operating system. Known are the clips whose worker has answered the clip of their
stream before; of n workers that take any clip, one in n would. Commands are those that Redis ran,
in scripts too; those that submit the clips are not among them.
"""

import argparse
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, cast

import psutil
import redis
from report import publish

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.domain.frame import FrameRef
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.stream import StreamSpec
from streamer.domain.timestamp import utc_now
from streamer.domain.watch import Watch
from streamer.local.redis_server import EmbeddedServer
from streamer.logging_setup import configure_logging
from streamer.queues.jobs import CLIP_JOB
from streamer.queues.models import CLIP_QUEUES
from streamer.redis_client.connections import Connections
from streamer.settings import Settings
from workers import context
from workers.gpu.clip_job import answer_request, publish_failure
from workers.rq.thread_worker import ThreadWorker

FRAMES = 8
SLOTS = 4


class Device:
    """A stand-in for a model: answers one clip after the other, each in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._free_at = 0.0

    def answer(self, request: dict[str, Any]) -> None:
        """Answer a clip, given as JSON: the function of its job."""
        answer_request(ClipRequest, request, self._answer)

    def _answer(self, own: context.WorkerContext, clip: ClipRequest, _started: float) -> Result:
        own.frames.load(clip.frames)
        with self._lock:  # the device is as fast as it is, however late a thread wakes up
            self._free_at = max(self._free_at, time.monotonic()) + self._seconds
            wait = self._free_at - time.monotonic()
        time.sleep(max(0.0, wait))
        text = "A person in a yellow coat walks past a parked van."
        return Result.answering(clip, text=text, data={"process": os.getpid()})


def work(settings: Settings, seconds: float, ready: Any, stop: Event) -> None:
    """Run one worker: a process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Connections(settings) as connections:
        own = context.WorkerContext(settings, connections)
        context.install(own)
        threading.Thread(target=_stop_with, args=(stop, own.stopping), daemon=True).start()
        ThreadWorker(
            CLIP_QUEUES,
            connections.main,
            slots=SLOTS,
            functions={CLIP_JOB: Device(seconds).answer},
            stopping=own.stopping,
            lease=settings.lease,
            on_failed=publish_failure,
        ).work(on_ready=ready.release)


def _stop_with(all_workers: Event, this_one: threading.Event) -> None:
    all_workers.wait()
    this_one.set()


def submit(own: context.WorkerContext, clips: int, cameras: int, frame_bytes: int) -> None:
    """Store the frames of some streams, and submit clips about them."""
    watch = Watch(prompt="What is there?", window=10.0)
    streams: list[tuple[StreamSpec, list[FrameRef]]] = []
    for number in range(min(cameras, clips)):
        spec = StreamSpec(name=f"camera-{number}", url="", live=False, watches=[watch])
        refs = [
            own.frames.put(
                spec.id, bytes(frame_bytes), Measures(640, 480, change=0.1), time=time.time(), pts=n
            )
            for n in range(FRAMES)
        ]
        streams.append((spec, refs))
    for number in range(clips):
        spec, refs = streams[number % len(streams)]
        request = ClipRequest.for_watch(
            spec, watch, start=utc_now(), end=utc_now(), frames=refs
        ).model_copy(update={"kind": RequestKind.FILE})
        own.jobs.submit(request)


def measure(workers: int, options: argparse.Namespace) -> dict[str, float]:
    """Return what `workers` workers did."""
    fork = multiprocessing.get_context("fork")
    ready, stop = fork.Semaphore(0), fork.Event()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        with EmbeddedServer(folder / "redis", persistent=False, max_memory=None) as server:
            settings = Settings(redis_url=server.url, data_dir=folder, frame_ttl=3600.0)
            processes = [
                fork.Process(target=work, args=(settings, 1 / options.rate, ready, stop))
                for _ in range(workers)
            ]
            with Connections(settings) as connections:
                own = context.WorkerContext(settings, connections)
                for process in processes:
                    process.start()
                for _ in processes:
                    ready.acquire()
                clips = clips_for(workers, options)
                submit(own, clips, options.streams, options.frame_bytes)
                while connections.main.xlen(redis_keys.RESULTS) < 2 * workers:
                    time.sleep(0.05)
                watched = [psutil.Process(p.pid) for p in processes]
                redis_process = psutil.Process(server.pid)
                done, began = connections.main.xlen(redis_keys.RESULTS), time.monotonic()
                cpu, served = sum(map(cpu_of, watched)), cpu_of(redis_process)
                commands = commands_of(connections.main)
                time.sleep(options.seconds)
                answered = connections.main.xlen(redis_keys.RESULTS) - done
                seconds = time.monotonic() - began
                cpu, served = sum(map(cpu_of, watched)) - cpu, cpu_of(redis_process) - served
                commands = commands_of(connections.main) - commands
                left = sum(own.jobs.depths().values())
                known = known_share(connections.main)
            stop.set()
            for process in processes:
                process.join()
    if left == 0:
        raise SystemExit("The queue ran empty: measure for longer, or with a lower rate.")
    return {
        "workers": workers,
        "clips_per_second": answered / seconds,
        "efficiency": answered / seconds / (workers * options.rate),
        "worker_cpu_ms": 1000 * cpu / answered,
        "redis_cpu_ms": 1000 * served / answered,
        "commands": commands / answered,
        "known": known,
    }


def clips_for(workers: int, options: argparse.Namespace) -> int:
    """Return how many clips keep the queue from running empty."""
    clips: float = workers * options.rate * (1.5 * options.seconds + 6)
    return round(clips) + SLOTS * workers


def known_share(client: redis.Redis) -> float:
    """Return the share of clips whose worker has answered the clip of their stream before."""
    last: dict[str, int] = {}
    same = total = 0
    entries = cast("list[tuple[bytes, dict[bytes, bytes]]]", client.xrange(redis_keys.RESULTS))
    for _, fields in entries:
        result = json.loads(fields[b"json"])
        stream, process = result["stream_id"], result["data"]["process"]
        if stream in last:
            same, total = same + (last[stream] == process), total + 1
        last[stream] = process
    return same / max(1, total)


def commands_of(client: redis.Redis) -> int:
    """Return how many commands the server has run so far, those of scripts too."""
    return int(client.info("stats")["total_commands_processed"])


def cpu_of(process: psutil.Process) -> float:
    """Return the CPU seconds that another process has used so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--rate", type=float, default=2.0, help="clips a second of a device")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--frame-bytes", type=int, default=40_000, help="bytes of each frame")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    configure_logging("error")
    found = [measure(workers, options) for workers in options.workers]
    rows = [
        [
            one["workers"],
            one["clips_per_second"],
            f"{one['efficiency']:.0%}",
            one["worker_cpu_ms"],
            one["redis_cpu_ms"],
            one["commands"],
            f"{one['known']:.0%}",
        ]
        for one in found
    ]
    header = ["workers", "clips/s", "efficiency", "worker CPU ms a clip", "Redis CPU ms a clip"]
    header += ["commands a clip", "known"]
    publish({"benchmark": "scale", "rate": options.rate, "rows": found}, header, rows)


if __name__ == "__main__":
    main()
