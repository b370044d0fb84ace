"""An installation without workers, for tests that run streams and look at what these produce."""

import threading
from pathlib import Path
from typing import Any, Self

import cv2
import numpy as np
import redis
from rq import Queue
from rq.serializers import JSONSerializer

from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.sampling import Sampling
from streamer.domain.stream import StreamSpec, StreamStatus
from streamer.domain.watch import Watch
from streamer.media.urls import split_secret
from streamer.queues.jobs import owner_of, read_request
from streamer.queues.models import FILES, WATCHES
from streamer.redis_client.connections import Connections
from streamer.settings import Settings
from tests.support.videos import number_of
from workers.context import GiveBack, WorkerContext
from workers.ingest.live_run import LiveRun
from workers.ingest.recording_run import RecordingRun

PASSWORD = "p@ss/w#rd% x"


class Slot:
    """The run of one stream as in an ingest worker, in a thread that the test can stop."""

    def __init__(self, context: WorkerContext, spec: StreamSpec, **arguments: Any) -> None:
        self._stop = threading.Event()
        self.outcome: BaseException | str | None = None
        kind: Any = LiveRun if spec.live else RecordingRun
        self.run = kind(context, spec, stop=self._stop.is_set, **arguments)
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        try:
            self.run.run()
            self.outcome = "returned"
        except BaseException as error:
            self.outcome = error

    def join(self, timeout: float = 120.0) -> None:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "still running"
        if isinstance(self.outcome, BaseException) and not isinstance(self.outcome, GiveBack):
            raise self.outcome

    def stop(self) -> None:
        self._stop.set()
        self.join()

    @property
    def given_back(self) -> bool:
        return isinstance(self.outcome, GiveBack)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self.join()


class Bench:
    """An installation without workers, and access to what streams put into it."""

    def __init__(self, settings: Settings, connections: Connections) -> None:
        self.settings = settings
        self.context = WorkerContext(settings=settings, connections=connections)
        self.registry = self.context.streams
        self.frames = self.context.frames

    def attach(
        self,
        url: str | Path,
        *watches: Watch,
        live: bool = False,
        fps: float = 5.0,
        name: str = "cam",
        **fields: Any,
    ) -> StreamSpec:
        shown, full = split_secret(str(url))
        fields |= {"sampling": Sampling(fps=fps), "watches": list(watches)}
        spec = StreamSpec(name=name, url=shown, live=live, **fields)
        self.registry.create(spec, full)
        found = self.registry.find(spec.id)  # as the worker finds it: times to the millisecond
        assert found is not None
        return found

    def run(self, spec: StreamSpec, **arguments: object) -> Slot:
        return Slot(self.context, spec, **arguments)

    def with_settings(self, **changes: object) -> "Bench":
        settings = self.settings.model_copy(update=changes)
        return Bench(settings, self.context.connections)

    def status(self, spec: StreamSpec) -> StreamStatus:
        return self.registry.status(spec.id)

    def requests(self, queue: str) -> list[ClipRequest]:
        jobs = Queue(
            queue, connection=self.context.connections.main, serializer=JSONSerializer
        ).get_jobs()
        found = [read_request(job) for job in jobs]
        return [request for request in found if request is not None]

    def answer(self, request: ClipRequest) -> None:
        """Take the request from its queue and publish a result, as a model worker does."""
        queue = {RequestKind.FILE: FILES, RequestKind.WATCH: WATCHES}[request.kind]
        Queue(queue, connection=self.context.connections.main).remove(request.id)
        self.context.results.publish(
            Result.answering(request, text="Something."), owner_id=owner_of(request)
        )

    def numbers(self, request: ClipRequest) -> list[int]:
        """Return the numbers that the pictures of a clip show."""
        pictures = [
            cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
            for jpeg in self.frames.load(request.frames)
        ]
        return [number_of(picture) for picture in pictures if picture is not None]


def watch(window: float = 2.0, **fields: Any) -> Watch:
    return Watch(prompt="What is there?", window=window, **fields)


class Flaky:
    """`target`, except that every third call of its `method` loses the connection to Redis."""

    def __init__(self, target: object, method: str) -> None:
        self._target = target
        self._method = method
        self._calls = 0

    def __getattr__(self, name: str) -> object:
        if name != self._method:
            return getattr(self._target, name)
        self._calls += 1
        if self._calls % 3 == 0:
            return self._gone
        return getattr(self._target, name)

    @staticmethod
    def _gone(*_args: object, **_kwargs: object) -> object:
        raise redis.exceptions.ConnectionError("gone")
