"""Measure cameras per core: the ingest worker beside OpenCV and bare decoding, in one run.

    .venv/bin/python benchmarks/ingest.py [--gop 50] [--cameras 2] [--seconds 15] [--rounds 3]
        [--latency] [--json]

Another process serves a 1080p25 H.264 street of 4 Mbit/s over RTSP on loopback. Each way runs in a
process of its own with `--cameras` connections. Its CPU time over `--seconds` after a warm-up is
divided by the seconds of stream received. The ways take turns, and the median round is printed:

* bare PyAV decodes every frame in one thread and discards it;
* OpenCV reads every frame with `cv2.VideoCapture.read` and encodes one a second as JPEG;
  `grab` converts only that one;
* ours runs all of an ingest slot: status, sampling, measures, JPEG, Redis.

`--latency` measures the time from a server sending a frame to its sample being in Redis.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import av
import cv2
import numpy as np
from footage import number_of, write_street
from report import percentiles, publish
from rtsp_sender import RtspSender

from streamer import redis_keys
from streamer.domain.sampling import Sampling
from streamer.domain.stream import StreamCounters, StreamSpec
from streamer.local.redis_server import EmbeddedServer
from streamer.redis_client.connections import Connections
from streamer.settings import Settings

SEED = 2_000_000_105
FPS, BIT_RATE, SIZE = 25, 4_000_000, (1920, 1080)
QUALITY = 90
WARM_UP = 3.0

Stopping = Callable[[], bool]

MODES = {
    "fps": Sampling(mode="fps", fps=1.0),
    "keyframes": Sampling(mode="keyframes", min_interval=0.9),
    "change": Sampling(mode="change", min_interval=1.0, max_interval=10.0),
}
OURS = {f"ours, {mode}": sampling for mode, sampling in MODES.items()}


@dataclass
class Count:
    """Counts of one camera so far."""

    frames: int = 0
    kept: int = 0
    dropped: int = 0

    def look(self) -> tuple[int, int, int]:
        """Return frames received, frames kept, and frames dropped because decoding was late."""
        return self.frames, self.kept, self.dropped


class Counters(Count):
    """Counts of a stream in the ingest worker."""

    def __init__(self, counters: StreamCounters) -> None:
        super().__init__()
        self._counters = counters

    def look(self) -> tuple[int, int, int]:
        """Return packets received, frames kept, and frames dropped."""
        counters = self._counters
        return counters.packets, counters.sampled, counters.dropped.total


def bare(url: str, stopping: Stopping, count: Count) -> None:
    """Decode every frame and discard it."""
    options = {"rtsp_transport": "tcp", "analyzeduration": "500000"}
    with av.open(url, options=options) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        for _ in container.decode(stream):
            count.frames += 1
            if stopping():
                break


def opencv(url: str, stopping: Stopping, count: Count, *, grab: bool = False) -> None:
    """Read every frame and encode one a second as JPEG."""
    capture = cv2.VideoCapture(url, cv2.CAP_FFMPEG)
    while not stopping():
        wanted = count.frames % FPS == 0
        if grab:
            found = capture.grab()
            picture = capture.retrieve()[1] if wanted else None
        else:
            found, picture = capture.read()
        assert found, "the camera has gone"
        if wanted and picture is not None:
            cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            count.kept += 1
        count.frames += 1


def our_stream(url: str, sampling: Sampling, context: Any, name: str) -> StreamSpec:
    """Attach `url`; return the specification as the worker finds it."""
    spec = StreamSpec(name=name, url=url, live=True, sampling=sampling)
    context.streams.create(spec, url)
    found: StreamSpec = context.streams.get(spec.id)
    return found


BESIDE = ("OpenCV, read", "bare PyAV")
WAYS = ("bare PyAV", "OpenCV, read", "OpenCV, grab", *OURS)


def child(way: str, url: str, cameras: int, seconds: float) -> None:
    """Run one way with `cameras` connections and print the cost of a second of stream."""
    from workers.context import WorkerContext
    from workers.ingest.live_run import LiveRun

    cv2.setNumThreads(1)  # as the ingest worker does
    settings = Settings(jpeg_quality=QUALITY, hwaccel="none")
    with Connections(settings) as connections:
        context = WorkerContext(settings=settings, connections=connections)
        stop = threading.Event()
        counts: list[Count] = []
        threads: list[threading.Thread] = []
        for number in range(cameras):
            if way in OURS:
                spec = our_stream(url, OURS[way], context, f"camera-{os.getpid()}-{number}")
                run = LiveRun(context, spec, stop=stop.is_set)
                counts.append(Counters(run.counters))
                threads.append(threading.Thread(target=until_stopped, args=(run,)))
            else:
                counts.append(Count())
                target = bare if way == "bare PyAV" else partial(opencv, grab=way.endswith("grab"))
                arguments = (url, stop.is_set, counts[-1])
                threads.append(threading.Thread(target=target, args=arguments))
        for thread in threads:
            thread.start()
        time.sleep(WARM_UP)
        before, cpu = total(counts), time.process_time()
        time.sleep(seconds)
        cpu, after = time.process_time() - cpu, total(counts)
        stop.set()
        for thread in threads:
            thread.join()
    frames, kept, dropped = (then - now for then, now in zip(after, before, strict=True))
    assert frames > 0, "no picture came"
    # Seconds of stream of all cameras. The wall clock is no measure of it on a busy machine.
    streamed = frames / FPS
    print(json.dumps({"cpu": cpu / streamed, "kept": kept / streamed, "dropped": dropped}))


def until_stopped(run: Any) -> None:
    """Run a stream as an ingest slot does, until it is stopped."""
    from workers.context import GiveBack

    with contextlib.suppress(GiveBack):
        run.run()


def total(counts: list[Count]) -> tuple[int, int, int]:
    """Return the sums over all cameras."""
    frames, kept, dropped = zip(*(count.look() for count in counts), strict=True)
    return sum(frames), sum(kept), sum(dropped)


def measure(way: str, url: str, redis_url: str, options: argparse.Namespace) -> dict[str, float]:
    """Run one way in a process of its own."""
    command = [sys.executable, __file__, "--child", way, "--url", url]
    command += ["--cameras", str(options.cameras), "--seconds", str(options.seconds)]
    environment = {**os.environ, "STREAMER_REDIS_URL": redis_url}  # hidden from the process list
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, timeout=300, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(video: Path, redis_url: str, options: argparse.Namespace) -> None:
    """Run all ways in turns and print the table."""
    runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    serve = [sys.executable, __file__, "--serve", str(video)]
    with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as camera:
        try:
            assert camera.stdout is not None
            url = camera.stdout.readline().strip()
            for number in range(options.rounds):
                for way in list(WAYS)[:: -1 if number % 2 else 1]:
                    runs[way].append(measure(way, url, redis_url, options))
                    print(f"round {number + 1}: {way}: {runs[way][-1]}", file=sys.stderr)
        finally:
            camera.terminate()
    cpu = {way: median(run["cpu"] for run in runs[way]) for way in WAYS}
    kept = {way: median(run["kept"] for run in runs[way]) for way in WAYS}

    def against(other: str, way: str) -> float:
        return median(o["cpu"] / w["cpu"] for o, w in zip(runs[other], runs[way], strict=True))

    header = [f"1080p25, key frame every {options.gop}", "CPU ms a camera-second"]
    header += ["cameras a core", "frames kept a second", *(f"x {other}" for other in BESIDE)]
    rows = [
        [way, 1000 * cpu[way], 1 / cpu[way], kept[way], *(against(o, way) for o in BESIDE)]
        for way in WAYS
    ]
    result = {
        "benchmark": "ingest",
        "gop": options.gop,
        "cameras": options.cameras,
        "ways": {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows},
    }
    publish(result, header, rows)


def latency(video: Path, redis_url: str, options: argparse.Namespace) -> None:
    """Measure from sending a frame to its sample in Redis, with `fps` at 5 frames a second."""
    from workers.context import WorkerContext
    from workers.ingest.live_run import LiveRun

    settings = Settings(redis_url=redis_url, jpeg_quality=QUALITY, hwaccel="none")
    cv2.setNumThreads(1)
    stop = threading.Event()
    delays: list[float] = []
    with RtspSender(video) as sender, Connections(settings) as connections:
        context = WorkerContext(settings=settings, connections=connections)
        spec = our_stream(sender.url, Sampling(fps=5.0), context, "camera")
        run = LiveRun(context, spec, stop=stop.is_set)
        thread = threading.Thread(target=until_stopped, args=(run,))
        thread.start()
        last: Any = "0"
        warm = time.monotonic() + WARM_UP
        while time.monotonic() < warm + options.seconds:
            index = redis_keys.frame_index(spec.id)
            found: Any = connections.frames.xread({index: last}, count=1, block=500)
            now = time.time()
            for entry, _ in found[0][1] if found else []:
                last = entry
                jpeg = connections.frames.get(redis_keys.jpeg(spec.id, entry.decode()))
                if time.monotonic() > warm and isinstance(jpeg, bytes):
                    delays.append(1000 * (now - sent_at(sender, jpeg)))
        stop.set()
        thread.join()
    p50, p95 = percentiles(delays, 50, 95)
    result = {"benchmark": "ingest latency", "frames": len(delays), "p50": p50, "p95": p95}
    publish(result, ["milliseconds", "p50", "p95"], [["sent to stored", p50, p95]])


def sent_at(sender: RtspSender, jpeg: bytes) -> float:
    """Return when the frame that `jpeg` shows was last sent."""
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    newest = len(sender.sent) - 1
    return sender.sent[newest - (newest - number_of(picture)) % sender.length]


def serve(video: Path) -> None:
    """Serve the video as a camera until killed."""
    with RtspSender(video) as camera:
        print(camera.url, flush=True)
        threading.Event().wait()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gop", type=int, default=50, help="frames from key frame to key frame")
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", action="store_true")
    parser.add_argument("--json", action="store_true")
    for hidden in ("--child", "--serve", "--url"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.url, options.cameras, options.seconds)
        return
    if options.serve:
        serve(Path(options.serve))
        return
    with tempfile.TemporaryDirectory() as directory:
        video = Path(directory) / "street.mp4"
        write_street(
            video, SEED, 20.0, FPS, SIZE, gop=options.gop, bit_rate=BIT_RATE, numbered=True
        )
        server = EmbeddedServer(Path(directory) / "redis", persistent=False, max_memory=1 << 29)
        with server:
            (latency if options.latency else compare)(video, server.url, options)


if __name__ == "__main__":
    main()
