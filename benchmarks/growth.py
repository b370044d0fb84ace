"""Repeat one event many times and print what a process holds after each sixteenth of them.

    .venv/bin/python benchmarks/growth.py EVENT [--times 48] [--streams 6] [--model FOLDER]
        [--dtype auto] [--database URL] [--json]

EVENT is one of an ingest worker

    reconnect   every camera closes its connection
    silence     Redis is frozen for three seconds
    freeze      the worker is frozen for three seconds
    cameras     eight more cameras are attached and detached
    recordings  six recordings are attached, read to their end and detached

or of a model worker

    clips       100 clips are answered, each of 1 to 8 frames in one of four sizes, with a question
                of its own length and answers of up to 40 tokens, 1 to 16 of them at the same time

or of a recorder

    results     500 results are recorded, in batches of many sizes, in SQLite or at `--database`;
                one in three answers is noise

or of this program itself

    batches     10 batches of 1 to 256 results are stored, in SQLite or at `--database`

"Heap" is what native code has allocated and not freed, as the program reports it within a lease;
what it and the memory differ in is Python's, or free. A leak grows with each event; what levels off
is a cache that fills, or the heap's free room.
"""

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
import redis
from report import cpu_seconds, publish
from timeline import result

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.sampling import Sampling
from streamer.domain.stream import Stream, StreamState
from streamer.domain.timestamp import to_datetime
from streamer.frames.jpeg import to_jpeg
from streamer.local.process import spawn, stop
from streamer.local.redis_server import EmbeddedServer
from streamer.service import Service
from streamer.settings import Settings
from streamer.timeline.results import Timeline
from workers.process import malloc

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.rtsp_proxy import RtspProxy  # the proxy with faults that the tests use
from tests.support.videos import write_video

_INGEST = ("reconnect", "silence", "freeze", "cameras", "recordings")
_CLIPS, _RESULTS, _BURST, _BATCHES = 100, 500, 8, 10
_SIZES = ((64, 64), (80, 80), (112, 112), (224, 112))
_STREAM, _SEED = "str_growth", 7
_FROZEN = 3.0
_MORE_CAMERAS, _RECORDINGS = 8, 6
_PATIENCE = 300.0
_FRESH = 2.0
"""Seconds within which every camera has a new frame when all is well."""


class Trial(ABC):
    """A process, and the events that may happen to it."""

    events: dict[str, Callable[[], None]]
    _pid: int

    @abstractmethod
    def settle(self) -> None:
        """Wait until the process has done all that there is to do. Raises TimeoutError."""

    def row(self, times: int, seconds: float) -> list[Any]:
        """Return what the process holds, as a row of the table."""
        process = psutil.Process(self._pid)
        memory = process.memory_full_info().uss / 2**20
        heap = self._heap() / 2**20
        held = [memory, heap, process.num_threads(), process.num_fds()]
        return [times, round(seconds), round(cpu_seconds(process), 1), *held]

    @abstractmethod
    def _heap(self) -> int:
        """Return the bytes that native code uses."""


class ProgramTrial(Trial):
    """A program of the service, and its Redis server.

    Args:
        stack: ends all of it.
        module: the program.
        variables: its settings, by the names of their variables without the prefix.
    """

    def __init__(self, stack: ExitStack, module: str, **variables: str | None) -> None:
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._server = stack.enter_context(
            EmbeddedServer(self._folder / "redis", persistent=False, max_memory=512 << 20)
        )
        data = self._folder / "data"
        self._settings = Settings(redis_url=self._server.url, data_dir=data)
        given = {"REDIS_URL": self._server.url, "DATA_DIR": str(data), **variables}
        environment = {f"STREAMER_{name}": value for name, value in given.items() if value}
        command = [sys.executable, "-m", module]
        log = self._folder / "worker.log"
        self._worker = spawn(command, env=os.environ | environment, log=log)
        stack.callback(stop, self._worker)
        self._pid = self._worker.pid
        self._client = stack.enter_context(Service(self._settings))
        self._redis = redis.Redis.from_url(self._server.url)
        stack.callback(self._redis.close)

    def _heap(self) -> int:
        keys: Any = self._redis.keys(redis_keys.worker("*"))
        heaps: list[Any] = [self._redis.hget(key, "heap_bytes") for key in keys]
        return max((int(each) for each in heaps if each), default=0)

    @staticmethod
    def _wait(condition: Callable[[], bool], pause: float = 0.1) -> None:
        deadline = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > deadline:
                raise TimeoutError("the program does not work any more")
            time.sleep(pause)


class IngestTrial(ProgramTrial):
    """An ingest worker with `streams` cameras."""

    def __init__(self, stack: ExitStack, streams: int) -> None:
        super().__init__(stack, "workers.ingest", RECONNECT_CAP="1", FRAME_TTL="30")
        self._film = self._folder / "film.mp4"
        write_video(self._film, seconds=20.0, fps=5)
        camera = LoopbackCamera(self._film)
        camera.start()
        stack.callback(camera.stop)
        url, port = camera.url, urlsplit(camera.url).port or 0
        self._proxies = [stack.enter_context(RtspProxy(port, seed)) for seed in range(streams)]
        self._url = self._proxies[0].through(url)
        for number, proxy in enumerate(self._proxies):
            self._attach(proxy.through(url), f"camera-{number}")
        self.events = {
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


class ModelTrial(ProgramTrial):
    """A model worker that answers clips."""

    def __init__(self, stack: ExitStack, model: str, dtype: str) -> None:
        super().__init__(stack, "workers.gpu", MODEL=model, DTYPE=dtype, WORKER_SLOTS="16")
        self._frames = self._client.frames
        self._jobs, self._results = self._client.jobs, self._client.queue
        self._random = random.Random(_SEED)
        self._noise = np.random.default_rng(_SEED)
        self._asked: set[str] = set()
        self.events = {"clips": self._clips}

    def settle(self) -> None:
        """Wait until a worker is there and every clip is answered."""
        self._wait(lambda: bool(self._jobs.models()) and self._is_answered(0))

    def _clips(self) -> None:
        for _ in range(_CLIPS):
            at_once = self._random.randint(0, 15)
            self._wait(partial(self._is_answered, at_once), pause=0.01)
            request = self._request()
            self._jobs.submit(request)
            self._asked.add(request.id)

    def _is_answered(self, most: int) -> bool:
        """Return whether at most `most` clips wait for their answers."""
        if len(self._asked) > most:
            self._asked = {each for each in self._asked if self._results.get(each) is None}
        return len(self._asked) <= most

    def _request(self) -> ClipRequest:
        dice, now = self._random, time.time()
        width, height = dice.choice(_SIZES)
        refs = []
        for age in range(dice.randint(1, 8), 0, -1):
            picture = self._noise.integers(0, 255, (height // 16, width // 16, 3), np.uint8)
            jpeg = to_jpeg(picture.repeat(16, 0).repeat(16, 1), quality=80)
            measures = Measures(width, height, change=dice.random())
            refs.append(self._frames.put(_STREAM, jpeg, measures, time=now - age, pts=now - age))
        return ClipRequest(
            kind=RequestKind.WATCH,
            stream_id=_STREAM,
            stream_name="growth",
            watch_id="wch_growth",
            start=to_datetime(now - len(refs)),
            end=to_datetime(now),
            prompt="What is there?" + " And now?" * dice.randint(0, 20),
            frames=refs,
            max_tokens=dice.choice((1, 4, 4, 12, 40)),
        )


class RecorderTrial(ProgramTrial):
    """A recorder."""

    def __init__(self, stack: ExitStack, database: str | None) -> None:
        super().__init__(stack, "workers.recorder", DATABASE_URL=database)
        self._random = random.Random(_SEED)
        self._count = 0
        self.events = {"results": self._record}

    def settle(self) -> None:
        """Wait until the recorder is there and every result is recorded."""
        self._wait(lambda: self._is_recorded(0))

    def _record(self) -> None:
        for _ in range(_RESULTS):
            if not self._count % _BURST:
                most = self._random.choice((0, 0, _BURST, 256))
                self._wait(partial(self._is_recorded, most), pause=0.01)
            made = result(self._count)
            if made.text and self._count % 3 == 0:
                size = self._random.choice((4, 30, 200, 512))
                noise = self._random.randbytes(size).decode(errors="replace")
                made = made.model_copy(update={"text": noise.replace("\0", "")})
            self._client.queue.publish(made, owner_id=None)
            self._count += 1

    def _is_recorded(self, most: int) -> bool:
        """Return whether at most `most` results wait to be recorded."""
        if not self._redis.exists(redis_keys.RECORDER):
            return False
        groups: Any = self._redis.xinfo_groups(redis_keys.RESULTS)
        waiting: int = sum(each["pending"] + (each["lag"] or 0) for each in groups)
        return waiting <= most


class TimelineTrial(Trial):
    """This process, which stores results."""

    def __init__(self, stack: ExitStack, database: str | None) -> None:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = database or f"sqlite:///{folder / 'timeline.db'}"
        self._timeline = Timeline(url, time_limit=_PATIENCE, upgrade=True)
        stack.callback(self._timeline.close)
        self._pid, self._random, self._count = os.getpid(), random.Random(_SEED), 0
        self.events = {"batches": self._store}

    def settle(self) -> None:
        """Do nothing: a batch that is stored is stored."""

    def _heap(self) -> int:
        return malloc.bytes_in_use() or 0

    def _store(self) -> None:
        for _ in range(_BATCHES):
            size = self._random.randint(1, 256)
            self._timeline.record([result(self._count + number) for number in range(size)])
            self._count += size


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
    parser.add_argument("event", choices=[*_INGEST, "clips", "results", "batches"])
    parser.add_argument("--times", type=int, default=48)
    parser.add_argument("--streams", type=int, default=6, help="cameras of the ingest worker")
    parser.add_argument("--model", default="demo", help="folder of the model worker's checkpoint")
    parser.add_argument("--dtype", default="auto", help="in which the model worker computes")
    parser.add_argument("--database", help="address of an empty database")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    rows = []
    with ExitStack() as stack:
        trial: Trial
        if options.event == "clips":
            trial = ModelTrial(stack, options.model, options.dtype)
        elif options.event == "results":
            trial = RecorderTrial(stack, options.database)
        elif options.event == "batches":
            trial = TimelineTrial(stack, options.database)
        else:
            trial = IngestTrial(stack, options.streams)
        trial.settle()
        began = time.monotonic()
        rows.append(trial.row(0, 0.0))
        for times in range(1, options.times + 1):
            trial.events[options.event]()
            trial.settle()
            if times % max(1, options.times // 16) == 0:
                rows.append(trial.row(times, time.monotonic() - began))
                print(*rows[-1], file=sys.stderr, flush=True)
    memory = ["memory (USS), MiB", "heap, MiB"]
    header = [f"{options.event}: times", "after s", "CPU s", *memory, "threads", "descriptors"]
    publish({"rows": rows}, header, rows)


if __name__ == "__main__":
    main()
