"""What a cluster has to do: cameras with watches, questions about them, and recordings."""

import contextlib
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import redis

from streamer import redis_keys
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.result import Result
from streamer.domain.sampling import Sampling
from streamer.domain.stream import StreamState
from streamer.errors import StreamerError
from streamer.http_client import Client
from streamer.queues.results import Results
from streamer.service import Service
from tests.cluster.machines import API_KEY, Cluster
from tests.cluster.network import OWN_ADDRESS
from tests.support.rtsp_proxy import RtspProxy
from tests.support.videos import write_video

WINDOW = 4.0
"""Seconds of a window, of recordings and few cameras."""

RECORDING_SECONDS = 40.0

_MAX_CLIPS = 2.0
"""Clips a second of all cameras together: many of them are asked about less often."""

_KEPT = 30.0
"""Seconds for which a recording stays attached after its end."""


@dataclass
class Camera:
    """One camera: its stream, and the proxy through which it is read.

    `doubled_for` is the longest time, in seconds, for which two connections read it at once.
    """

    name: str
    proxy: RtspProxy
    stream_id: str = ""
    doubled_for: float = 0.0
    _doubled_since: float | None = None

    def tick(self) -> None:
        """Note how many connections read the camera."""
        if self.proxy.open < 2:
            self._doubled_since = None
            return
        now = time.monotonic()
        self._doubled_since = self._doubled_since or now
        self.doubled_for = max(self.doubled_for, now - self._doubled_since)


@dataclass
class Accepted:
    """What the service has accepted: it owes a result for each.

    Attributes:
        queries: ids of the queries.
        recordings: id of the stream to its name.
        over: ids of the recordings that have ended, and whose last answer is there.
        refused: how often each error code refused new work.
    """

    queries: set[str] = field(default_factory=set)
    recordings: dict[str, str] = field(default_factory=dict)
    over: set[str] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)


class Published:
    """Every result that the results queue had, by its request.

    A result that was read before a replica had it may be taken back by a failover, and another one
    published: only what still stands in the queue, or was trimmed from it, is a result.

    Attributes:
        results: request id to its results.
        taken_back: how many were read and taken back.
    """

    def __init__(self) -> None:
        self.results: dict[str, list[Result]] = defaultdict(list)
        self.taken_back = 0
        self._entries: dict[str, bytes] = {}

    def note(self, connection: redis.Redis, entry_id: str, result: Result) -> None:
        """Note a result that was read at `entry_id`. Raises redis.exceptions.RedisError."""
        earlier = self._entries.get(result.request_id)
        if earlier is not None and not _stands(connection, earlier):
            self.results.pop(result.request_id)
            self.taken_back += 1
        self._entries[result.request_id] = entry_id.encode()
        self.results[result.request_id].append(result)


def _stands(connection: redis.Redis, entry_id: bytes) -> bool:
    """Return whether the results queue has an entry, or has trimmed it."""
    first: Any = connection.xrange(redis_keys.RESULTS, entry_id, count=1)
    oldest: Any = connection.xrange(redis_keys.RESULTS, count=1)
    return not first or first[0][0] in (entry_id, oldest[0][0])


class Load:
    """Keeps a cluster busy until `pause`, and notes what was accepted and what was published.

    Args:
        cluster: what to keep busy.
        folder: for videos.
        seed: the same seed asks the same questions.
        cameras: number of cameras.
        questions: mean number of questions a second.
    """

    def __init__(
        self, cluster: Cluster, folder: Path, seed: int, *, cameras: int, questions: float
    ) -> None:
        self._cluster = cluster
        self._random = random.Random(seed)
        self._questions = questions
        self._film = folder / "film.mp4"
        self._recording = folder / "recording.mp4"
        write_video(self._film, seconds=20.0, fps=5)
        write_video(self._recording, seconds=RECORDING_SECONDS, fps=5)
        self._source = LoopbackCamera(self._film)
        self._count, self._seed = cameras, seed
        self.cameras: list[Camera] = []
        self.accepted = Accepted()
        self._published = Published()
        self._stopped, self._paused = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=target, name=target.__name__, daemon=True)
            for target in (self._ask, self._record, self._read)
        ]

    @property
    def published(self) -> dict[str, list[Result]]:
        """Results by the id of their request, as the results queue had them."""
        return self._published.results

    @property
    def taken_back(self) -> int:
        """How many results were read from a server that had been deposed, and published again."""
        return self._published.taken_back

    def __enter__(self) -> Self:
        self._source.start()
        port = urlsplit(self._source.url).port or 0
        window = max(WINDOW, self._count / _MAX_CLIPS)
        with self._cluster.client() as client:
            for number in range(self._count):
                proxy = RtspProxy(port, self._seed + number, OWN_ADDRESS)
                proxy.__enter__()
                camera = Camera(f"camera-{number}", proxy)
                self.cameras.append(camera)
                stream = client.attach(
                    camera.proxy.through(self._source.url),
                    camera.name,
                    sampling=Sampling(fps=1.0),
                    watches=[client.watch("What is there?", window=window)],
                    probe=False,
                    live=True,
                )
                camera.stream_id = stream.id
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._paused.set()
        self._stopped.set()
        for thread in self._threads:
            thread.join(30)
        for camera in self.cameras:
            camera.proxy.__exit__()
        self._source.stop()

    def tick(self) -> None:
        """Look at the cameras; call it a few times a second."""
        for camera in self.cameras:
            camera.tick()

    def pause(self) -> None:
        """Ask nothing more, and attach no more recordings; the cameras go on."""
        self._paused.set()

    def _ask(self) -> None:
        """Ask about cameras, every other time through the API."""
        api = Client(self._cluster.api_url, api_key=API_KEY, timeout=10.0)
        with self._cluster.client() as client, api:
            client.first_frame_wait = 0.0
            while not self._paused.wait(self._random.expovariate(self._questions)):
                camera = self._random.choice(self.cameras).name
                past = {"since": "-20s"} if self._random.random() < 0.4 else {"stale_ok": True}
                by_api = self._random.random() < 0.5
                with self._refusals():
                    ask: Any = api.submit if by_api else client.ask
                    query = ask("What is there?", camera, max_tokens=4, **past)
                    self.accepted.queries.add(query.id)

    def _record(self) -> None:
        number, over_since = 0, dict[str, float]()
        with self._cluster.client() as client:
            while not self._paused.wait(self._random.uniform(5, 15)):
                with contextlib.suppress(StreamerError, redis.exceptions.RedisError):
                    self._detach_ended(client, over_since)
                with self._refusals():
                    name = f"recording-{number}"
                    stream = client.attach(
                        str(self._recording),
                        name,
                        watches=[client.watch("What is there?", window=WINDOW)],
                        probe=False,
                        live=False,
                    )
                    self.accepted.recordings[stream.id] = name
                    number += 1

    def note_ended(self, client: Service) -> set[str]:
        """Note which recordings are over; return those that are attached still."""
        over = {
            stream.id
            for stream in client.streams()
            if stream.id in self.accepted.recordings and not stream.unanswered
            if stream.state in (StreamState.ENDED, StreamState.FAILED)
        }
        self.accepted.over |= over
        return over

    def _detach_ended(self, client: Service, over_since: dict[str, float]) -> None:
        now = time.monotonic()
        for stream_id in self.note_ended(client):
            if now - over_since.setdefault(stream_id, now) > _KEPT:
                client.detach(stream_id)

    def _read(self) -> None:
        """Note every entry of the results queue, each once."""
        position = "0-0"
        with self._cluster.open_jobs() as connection:
            results = Results(connection, self._cluster.settings)
            while not self._stopped.is_set():
                try:
                    entries = results.read(position, block=1.0)
                except redis.exceptions.RedisError:
                    time.sleep(0.2)
                    continue
                for entry_id, result in entries:
                    self._note(connection, entry_id, result)
                    position = entry_id

    def _note(self, connection: redis.Redis, entry_id: str, result: Result) -> None:
        while not self._stopped.is_set():
            try:
                self._published.note(connection, entry_id, result)
                return
            except redis.exceptions.RedisError:
                time.sleep(0.2)

    @contextlib.contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except StreamerError as error:
            self.accepted.refused[error.code.value] += 1
        except redis.exceptions.RedisError as error:
            self.accepted.refused[type(error).__name__] += 1
