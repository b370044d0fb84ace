"""Run streams under random faults and measure what the ingest worker loses or leaks.

    .venv/bin/python benchmarks/soak.py [--streams 12] [--minutes 30] [--seed 1] [--json]

One real ingest worker reads the streams. Each stream comes through a proxy that at random cuts,
mutes or refuses the connection, loses or damages packets, or shifts timestamps; meanwhile streams
are paused, edited, detached and attached. Every three minutes all faults end, every stream must run
again, and the worker's resources are recorded as one point: unique memory (USS), threads,
descriptors, and among these its connections to Redis, of which it closes the idle ones every five
minutes. The slope is that of the least-squares line through all points except the first fifth, in
which caches fill. The highest value covers all moments, faults included.
"""

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from footage import write_street
from report import publish

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.sampling import Sampling
from streamer.domain.stream import Stream, StreamState
from streamer.local.process import spawn, stop
from streamer.local.redis_server import EmbeddedServer
from streamer.service import Service
from streamer.settings import Settings

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.rtsp_proxy import RtspProxy  # the proxy with faults that the tests use

EVERY = 2.0
SPELL, CALM = 180.0, 12.0
RECOVERY = 120.0
CAP = 5.0


class Line:
    """One stream and the proxy in front of its camera."""

    def __init__(self, client: Service, camera: LoopbackCamera, number: int, seed: int) -> None:
        port = urlsplit(camera.url).port
        assert port is not None
        self._client = client
        self.proxy = RtspProxy(port, seed)
        self._camera = camera
        self.name = f"camera-{number}"

    @property
    def url(self) -> str:
        """URL of the camera through the proxy."""
        return self.proxy.through(self._camera.url)

    def attach(self) -> Stream:
        """Attach the stream."""
        watches = [self._client.watch("What is there?", window=10.0)]
        return self._client.attach(
            self.url, self.name, sampling=Sampling(fps=1), watches=watches, probe=False
        )

    def heal(self) -> None:
        """End all faults of the proxy except the shift of its clock."""
        faults = self.proxy.faults
        faults.lose = faults.flip = 0.0
        faults.mute = faults.refuse = False

    def refuse(self) -> None:
        """Cut the connection and refuse new ones."""
        self.proxy.faults.refuse = True
        self.proxy.hang_up()


def hurt(line: Line, client: Service, draw: random.Random) -> tuple[str, float]:
    """Start a random fault; return its name and how many seconds it lasts."""
    faults = line.proxy.faults
    kinds: dict[str, Callable[[], Any]] = {
        "cut": line.proxy.hang_up,
        "muted": lambda: setattr(faults, "mute", True),
        "refused": line.refuse,
        "packets lost": lambda: setattr(faults, "lose", 0.05),
        "bits flipped": lambda: setattr(faults, "flip", 0.2),
        "clock set": lambda: setattr(faults, "shift", draw.uniform(-7200, 7200)),
        "paused": lambda: client.edit(line.name, paused=True),
        "edited": lambda: client.edit(line.name, source=line.url, probe=False),
        "detached": lambda: client.detach(line.name),
    }
    kind = draw.choice(list(kinds))
    kinds[kind]()
    return kind, draw.uniform(2, 20)


def mend(kind: str, line: Line, client: Service) -> None:
    """Undo a fault of `hurt`."""
    line.heal()
    if kind == "paused":
        client.edit(line.name, paused=False)
    elif kind == "detached":
        line.attach()


def torment(lines: list[Line], client: Service, until: float, draw: random.Random) -> Counter[str]:
    """Start a fault about every two seconds on a healthy stream; end all faults at `until`."""
    counts: Counter[str] = Counter()
    broken: dict[Line, tuple[str, float]] = {}
    while time.monotonic() < until:
        now = time.monotonic()
        for line in [line for line, (_, end) in broken.items() if end <= now]:
            mend(broken.pop(line)[0], line, client)
        whole = [line for line in lines if line not in broken]
        if len(whole) > len(lines) // 3:
            line = draw.choice(whole)
            kind, seconds = hurt(line, client, draw)
            counts[kind] += 1
            broken[line] = (kind, now + seconds)
        time.sleep(draw.uniform(0.5, 3.5))
    for line, (kind, _) in broken.items():
        mend(kind, line, client)
    return counts


class Samples(threading.Thread):
    """Records the resources of the worker process every two seconds."""

    def __init__(self, pid: int, redis_port: int | None) -> None:
        super().__init__(daemon=True)
        self._process, self._redis_port = psutil.Process(pid), redis_port
        self._done = threading.Event()
        self.rows: list[tuple[float, float, float, float, float]] = []
        self.points: list[list[float]] = []

    def run(self) -> None:
        """Record until stopped."""
        while not self._done.wait(EVERY):
            with self._process.oneshot():
                memory = self._process.memory_full_info().uss / 2**20
                threads, files = self._process.num_threads(), self._process.num_fds()
                ends = [each.raddr for each in self._process.net_connections("tcp")]
            redis = sum(bool(end) and end.port == self._redis_port for end in ends)
            self.rows.append((time.monotonic(), memory, threads, files, redis))

    def stop(self) -> None:
        """Stop recording."""
        self._done.set()
        self.join()

    def point(self) -> None:
        """Wait until nothing happens, then record a point."""
        time.sleep(CALM)
        began = time.monotonic() - CALM / 2
        self.points.append(np.median([row for row in self.rows if row[0] > began], 0).tolist())

    def slopes(self) -> list[dict[str, float]]:
        """Return first, last, highest value and slope per hour of each resource."""
        table = np.array(self.points[len(self.points) // 5 :])
        hours = (table[:, 0] - table[0, 0]) / 3600
        highest = np.array(self.rows).max(0)
        return [
            {
                "first": float(column[0]),
                "last": float(column[-1]),
                "highest": float(maximum),
                "per_hour": float(np.polyfit(hours, column, 1)[0]) if len(column) > 1 else 0.0,
            }
            for column, maximum in zip(table[:, 1:].T, highest[1:], strict=True)
        ]


@contextmanager
def worker(settings: Settings, folder: Path) -> Iterator[int]:
    """Run a real `python -m workers.ingest`; yield its process id."""
    environment = {
        **os.environ,
        "STREAMER_REDIS_URL": settings.redis_url or "",
        "STREAMER_LOG_LEVEL": "warning",
        "STREAMER_RECONNECT_CAP": str(CAP),
    }
    process = spawn(
        [sys.executable, "-m", "workers.ingest"], env=environment, log=folder / "ingest.log"
    )
    try:
        yield process.pid
        if process.poll() is not None:
            raise RuntimeError((folder / "ingest.log").read_text())
    finally:
        stop(process)


def recover(client: Service) -> float:
    """Wait until every stream runs again; return the seconds, or raise RuntimeError."""
    began = time.monotonic()
    while True:
        late = [s for s in client.streams() if s.state is not StreamState.RUNNING]
        if not late:
            return time.monotonic() - began
        if time.monotonic() - began > RECOVERY:
            raise RuntimeError(f"{late[0].name} is {late[0].state}: {late[0].error}")
        time.sleep(0.2)


def main() -> None:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--streams", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_street(folder / "street.mp4", 1, seconds=10, fps=15, size=(640, 480))
        server = stack.enter_context(
            EmbeddedServer(folder / "redis", persistent=False, max_memory=256 * 2**20)
        )
        settings = Settings(redis_url=server.url, data_dir=folder / "data")
        client = stack.enter_context(Service(settings))
        camera = stack.enter_context(LoopbackCamera(folder / "street.mp4"))
        pid = stack.enter_context(worker(settings, folder))
        lines = [Line(client, camera, n, arguments.seed + n) for n in range(arguments.streams)]
        for line in lines:
            stack.enter_context(line.proxy)
            line.attach()
        recover(client)
        samples = Samples(pid, urlsplit(server.url).port)
        samples.start()
        end = time.monotonic() + 60 * arguments.minutes
        draw, counts, took = random.Random(arguments.seed), Counter[str](), 0.0
        while time.monotonic() < end:
            counts += torment(lines, client, min(end, time.monotonic() + SPELL), draw)
            took = max(took, recover(client))
            samples.point()
        samples.stop()
        streams = client.streams()
        slopes = samples.slopes()

    names = ("memory, MiB", "threads", "descriptors", "- to Redis")
    result = {
        "streams": arguments.streams,
        "minutes": arguments.minutes,
        "faults": dict(counts),
        "recovered_seconds": took,
        "reconnects": sum(s.counters.reconnects for s in streams),
        "slopes": dict(zip(names, slopes, strict=True)),
        "points": samples.points,
    }
    rows = [[name, *slope.values()] for name, slope in zip(names, slopes, strict=True)]
    publish(result, ["ingest worker", "first", "last", "highest", "slope per hour"], rows)
    if not arguments.json:
        kinds = ", ".join(f"{n} {kind}" for kind, n in counts.most_common())
        print(f"\n{arguments.streams} streams, {arguments.minutes:g} minutes; faults: {kinds}.")
        print(f"All streams ran again within {took:.1f} s after the faults ended.")


if __name__ == "__main__":
    main()
