"""Repeat one event many times and print what an ingest worker holds after each sixteenth of them.

    .venv/bin/python benchmarks/growth.py EVENT [--times 48] [--streams 6] [--json]

EVENT is one of

    reconnect   every camera closes its connection
    silence     Redis is frozen for three seconds
    freeze      the worker is frozen for three seconds
    cameras     eight more cameras are attached and detached
    recordings  six recordings are attached, read to their end and detached

A leak grows with each event; what levels off is a cache that fills, or the heap's free room.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
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
from tests.support.videos import write_video

_FROZEN = 3.0
_MORE_CAMERAS, _RECORDINGS = 8, 6
_PATIENCE = 300.0
_FRESH = 2.0
"""Seconds within which every camera has a new frame when all is well."""


class Trial:
    """An ingest worker with cameras, and the events that may happen to it."""

    def __init__(self, stack: ExitStack, streams: int) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._server = stack.enter_context(
            EmbeddedServer(folder / "redis", persistent=False, max_memory=512 << 20)
        )
        self._film = folder / "film.mp4"
        write_video(self._film, seconds=20.0, fps=5)
        camera = LoopbackCamera(self._film)
        camera.start()
        stack.callback(camera.stop)
        url, port = camera.url, urlsplit(camera.url).port or 0
        self._proxies = [stack.enter_context(RtspProxy(port, seed)) for seed in range(streams)]
        self._url = self._proxies[0].through(url)
        settings = Settings(redis_url=self._server.url, data_dir=folder / "data")
        variables = {
            "STREAMER_REDIS_URL": self._server.url,
            "STREAMER_DATA_DIR": str(folder / "data"),
            "STREAMER_RECONNECT_CAP": "1",
            "STREAMER_FRAME_TTL": "30",
        }
        command = [sys.executable, "-m", "workers.ingest"]
        self._worker = spawn(command, env=os.environ | variables, log=folder / "worker.log")
        stack.callback(stop, self._worker)
        self._client = stack.enter_context(Service(settings))
        for number, proxy in enumerate(self._proxies):
            self._attach(proxy.through(url), f"camera-{number}")
        self.events: dict[str, Callable[[], None]] = {
            "reconnect": self._reconnect,
            "silence": lambda: _freeze(self._server.pid or 0),
            "freeze": lambda: _freeze(self._worker.pid),
            "cameras": self._more_cameras,
            "recordings": self._recordings,
        }

    def settle(self) -> None:
        """Wait until every camera has a new frame. Raises TimeoutError."""
        since = time.time()
        self._wait(
            lambda: all(
                stream.state is StreamState.RUNNING
                and stream.last_frame_at is not None
                and stream.last_frame_at.timestamp() > max(since, time.time() - _FRESH)
                for stream in self._client.streams()
            )
        )

    def row(self, times: int, seconds: float) -> list[Any]:
        """Return what the worker holds, as a row of the table."""
        process = psutil.Process(self._worker.pid)
        memory = process.memory_full_info().uss / 2**20
        return [times, round(seconds), memory, process.num_threads(), process.num_fds()]

    def _attach(self, url: str, name: str, *, live: bool = True) -> Stream:
        return self._client.attach(
            url,
            name,
            sampling=Sampling(fps=1),
            watches=[self._client.watch("What is there?", window=4.0)],
            probe=False,
            live=live,
        )

    def _reconnect(self) -> None:
        for proxy in self._proxies:
            proxy.hang_up()

    def _more_cameras(self) -> None:
        more = [self._attach(self._url, f"more-{number}") for number in range(_MORE_CAMERAS)]
        self.settle()
        self._detach(more)

    def _recordings(self) -> None:
        more = [
            self._attach(str(self._film), f"recording-{number}", live=False)
            for number in range(_RECORDINGS)
        ]
        ids = [stream.id for stream in more]
        ended = StreamState.ENDED
        self._wait(lambda: all(self._client.stream(each).state is ended for each in ids))
        self._detach(more)

    def _detach(self, streams: list[Stream]) -> None:
        for stream in streams:
            self._client.detach(stream.id)

    @staticmethod
    def _wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError("the worker does not work any more")
            time.sleep(0.1)


def _freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(_FROZEN)
    finally:
        os.kill(pid, signal.SIGCONT)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = ("reconnect", "silence", "freeze", "cameras", "recordings")
    parser.add_argument("event", choices=names)
    parser.add_argument("--times", type=int, default=48)
    parser.add_argument("--streams", type=int, default=6)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows = []
    with ExitStack() as stack:
        trial = Trial(stack, options.streams)
        trial.settle()
        began = time.monotonic()
        rows.append(trial.row(0, 0.0))
        for times in range(1, options.times + 1):
            trial.events[options.event]()
            trial.settle()
            if times % max(1, options.times // 16) == 0:
                rows.append(trial.row(times, time.monotonic() - began))
                print(*rows[-1], file=sys.stderr, flush=True)
    header = [f"{options.event}: times", "after s", "memory (USS), MiB", "threads", "descriptors"]
    publish({"rows": rows}, header, rows)


if __name__ == "__main__":
    main()
