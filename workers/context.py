"""Hold what a worker process owns, so that its jobs find it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from streamer.clock import Clock, shared
from streamer.frames.store import FrameStore, Retention
from streamer.queues.jobs import Jobs
from streamer.queues.lost_requests import LostRequests
from streamer.queues.recorded_windows import RecordedWindows
from streamer.queues.results import Ending, Results
from streamer.redis_client.connections import Connections
from streamer.secret_box import SecretBox
from streamer.settings import Settings
from streamer.sources.streams import StreamRegistry
from workers.backend import Backend
from workers.isolation import Isolation
from workers.registry_batch import RegistryBatch

if TYPE_CHECKING:
    from nvila_core import Engine
    from streamer.frames.archive_writer import ArchiveWriter
    from workers.video_relay import VideoRelay


class GiveBack(Exception):  # noqa: N818 - a request, not an error
    """Raised by a job to return to the front of its queue, without using up a retry."""


class Abandon(Exception):  # noqa: N818
    """Raised by a job to be left as if its worker had died: another worker retries it."""


class BrokeDown(Exception):  # noqa: N818
    """Raised by a job whose worker broke down while it ran, perhaps because of it.

    The job returns to the front of its queue with one retry fewer; without retries it has failed.
    """


class Place(Protocol):
    """The place of a job in its worker."""

    def rest(self) -> None:
        """Give up the slot, but not the job, which waits for something."""
        ...

    def resume(self) -> bool:
        """Take a slot again; return False if none is free."""
        ...

    def allow_moves(self) -> None:
        """Let this job be moved to another worker, by way of its queue."""
        ...

    def ending(self) -> Ending | None:
        """Return what ends this job, to be done with its last step; None if nothing needs to."""
        ...

    def note_end(self, owned: bool) -> None:
        """Note that its last step was done with `ending`, which returned `owned`."""
        ...


class _NoWorker:
    """The place of a job that runs outside a worker: nothing is scarce there."""

    def rest(self) -> None:
        """Do nothing."""

    def resume(self) -> bool:
        """Return True."""
        return True

    def allow_moves(self) -> None:
        """Do nothing."""

    def ending(self) -> Ending | None:
        """Return None."""
        return None

    def note_end(self, owned: bool) -> None:
        """Do nothing."""


@dataclass
class WorkerContext:
    """The resources of this process. All are safe to use from every slot.

    Attributes:
        settings, connections: what the process was started with.
        engine: the engine of a model worker that runs its model itself.
        backend: what answers the clips of a model worker.
        archive: where an ingest worker archives frames.
        model_name: what results name as their model.
        worker_name: the name of the worker in RQ.
        stopping: set when the process is to end.
        isolation: shares the engine among requests.
        clock: the time, that of Redis; a test moves it by hand.
        failure: why the process can do no more work; None while it can.
        late_frames: frames that an ingest worker dropped because it decodes too slowly.
    """

    settings: Settings
    connections: Connections
    engine: "Engine | None" = None
    archive: "ArchiveWriter | None" = None
    model_name: str | None = None
    worker_name: str | None = None
    backend: Backend | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    isolation: Isolation = field(default_factory=Isolation)
    clock: Clock = field(default_factory=shared)
    failure: str | None = None
    late_frames: int = 0
    _video: "VideoRelay | None" = field(default=None, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _registry_batch: RegistryBatch | None = field(default=None, repr=False)

    def note_late(self, frames: int) -> None:
        """Count frames that were dropped because this process decodes too slowly."""
        with self._lock:
            self.late_frames += frames

    def fail(self, reason: str) -> None:
        """Stop this process, which can do no more work, and remember the first reason."""
        self.failure = self.failure or reason
        self.stopping.set()

    @property
    def model(self) -> Backend:
        """What answers the clips of this model worker."""
        assert self.backend is not None
        return self.backend

    @cached_property
    def frames(self) -> FrameStore:
        """The frames of all streams."""
        return FrameStore(self.connections.frames, Retention.of(self.settings), clock=self.clock)

    @property
    def video(self) -> "VideoRelay":
        """Relay of the video of streams that have viewers."""
        from streamer.sources.live_video import LiveVideo
        from workers.video_relay import VideoRelay  # imports PyAV, which model workers do without

        with self._lock:
            if self._video is None:
                video = LiveVideo(self.connections.frames, self.clock)
                self._video = VideoRelay(video, self.connections.frames_outage, self.clock)
            return self._video

    def video_numbers(self) -> dict[str, float]:
        """Return what `/metrics` shows of the relayed video; none before the first stream runs."""
        if self._video is None:
            return {"video_streams": 0, "video_bytes": 0}
        return self._video.numbers()

    @cached_property
    def streams(self) -> StreamRegistry:
        """The attached streams."""
        return StreamRegistry(self.connections.main, SecretBox(self.settings.secret_key))

    @property
    def registry_batch(self) -> RegistryBatch:
        """The attached streams, asked once for all that this process runs."""
        with self._lock:
            if self._registry_batch is None:
                self._registry_batch = RegistryBatch(self.streams, self.clock)
            return self._registry_batch

    @cached_property
    def jobs(self) -> Jobs:
        """The job queues."""
        return Jobs(self.connections.main, self.settings)

    @cached_property
    def results(self) -> Results:
        """The results queue."""
        return Results(self.connections.main, self.settings)

    @cached_property
    def windows(self) -> RecordedWindows:
        """Which windows of recordings have been asked about."""
        return RecordedWindows(self.connections.main)

    @cached_property
    def lost_requests(self) -> LostRequests:
        """The requests whose jobs Redis has lost."""
        return LostRequests(self.connections.main, self.results)


_context: WorkerContext | None = None
_thread = threading.local()


def install(context: WorkerContext | None) -> None:
    """Set the context of this process; its program calls this once."""
    global _context
    _context = context


def current() -> WorkerContext:
    """Return the context of this process."""
    if _context is None:
        raise RuntimeError("no worker context: jobs run inside worker processes only")
    return _context


def enter_slot(
    cancelled: threading.Event,
    token: int | None = None,
    last_attempt: bool = False,
    place: Place | None = None,
    first_attempt: bool = False,
    wait: float = 0.0,
) -> None:
    """Attach to the calling thread the event that says that its job is no longer wanted.

    `token`: shows that this worker owns the job. `last_attempt`: workers died or broke down over
    this job, and it will not be retried. `place`: that of the job in its worker. `first_attempt`:
    no worker has begun the job before. `wait`: seconds that those behind the job in its queue are
    expected to wait.
    """
    _thread.cancelled = cancelled
    _thread.token = token
    _thread.last_attempt = last_attempt
    _thread.place = place
    _thread.first_attempt = first_attempt
    _thread.wait = wait


def token() -> int | None:
    """Return what shows that this worker owns the job of the calling thread; None if it has none.

    Each taking of a job gets a higher one than all before.
    """
    return getattr(_thread, "token", None)


def last_attempt() -> bool:
    """Return whether the job of the calling thread has used up its retries."""
    return getattr(_thread, "last_attempt", False)


def first_attempt() -> bool:
    """Return whether the job of the calling thread was never begun before."""
    return getattr(_thread, "first_attempt", False)


def wait_behind() -> float:
    """Return the seconds that the last job of its queue was expected to wait when the job of the
    calling thread was taken; 0 if none waited."""
    return getattr(_thread, "wait", 0.0)


def place() -> Place:
    """Return the place of the job of the calling thread."""
    return getattr(_thread, "place", None) or _NoWorker()


def stop_check() -> Callable[[], bool]:
    """Return a check, for any thread, whether the job of the *calling* thread should stop.

    It is true once the worker is stopping, the job was stopped, or another worker took it over.
    """
    cancelled: threading.Event = getattr(_thread, "cancelled", None) or threading.Event()
    stopping = current().stopping
    return lambda: stopping.is_set() or cancelled.is_set()


def cancel_check() -> Callable[[], bool]:
    """Return a check like that of `stop_check`, except that the job may finish when the worker is
    only stopping."""
    cancelled: threading.Event = getattr(_thread, "cancelled", None) or threading.Event()
    return cancelled.is_set
