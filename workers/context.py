"""What a worker process owns and its jobs need, found by them through this module."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from streamer.connections import Connections
from streamer.frames.store import FrameStore, Retention
from streamer.jobs import Jobs
from streamer.results import Results
from streamer.secret_box import SecretBox
from streamer.settings import Settings
from streamer.streams import StreamRegistry
from workers.isolation import Isolation

if TYPE_CHECKING:
    from nvila_core import Engine
    from streamer.frames.archive_writer import ArchiveWriter


class GiveBack(Exception):  # noqa: N818 - a request, not an error
    """Raised by a job to be put back at the front of its queue; no retry is used up."""


class Abandon(Exception):  # noqa: N818
    """Raised by a job to be left as if its worker had died: it uses up a retry, elsewhere."""


class BrokeDown(Exception):  # noqa: N818
    """Raised by a job whose worker broke down while it worked on it, perhaps because of it.

    It is put back at the front of its queue with a retry fewer; without one left it has failed.
    """


@dataclass
class WorkerContext:
    """The resources of this process. All are safe to use from every slot."""

    settings: Settings
    connections: Connections
    engine: "Engine | None" = None
    archive: "ArchiveWriter | None" = None
    model_name: str | None = None
    worker_name: str | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    isolation: Isolation = field(default_factory=Isolation)
    failure: str | None = None

    def fail(self, reason: str) -> None:
        """This process can do no more good: stop it, with `reason` as its last word."""
        self.failure = self.failure or reason
        self.stopping.set()

    @cached_property
    def frames(self) -> FrameStore:
        """The frames of all streams."""
        return FrameStore(self.connections.frames, Retention.of(self.settings))

    @cached_property
    def streams(self) -> StreamRegistry:
        """The attached streams."""
        return StreamRegistry(self.connections.main, SecretBox(self.settings.secret_key))

    @cached_property
    def jobs(self) -> Jobs:
        """The job queues."""
        return Jobs(self.connections.main, self.settings)

    @cached_property
    def results(self) -> Results:
        """The results queue."""
        return Results(self.connections.main, self.settings)


_context: WorkerContext | None = None
_thread = threading.local()


def install(context: WorkerContext | None) -> None:
    """Make `context` this process's own; called once, by its main."""
    global _context
    _context = context


def current() -> WorkerContext:
    """The context of this process."""
    if _context is None:
        raise RuntimeError("no worker context: jobs run inside a worker process only")
    return _context


def enter_slot(cancelled: threading.Event, last_attempt: bool = False) -> None:
    """Tell the calling thread which event says that its job is no longer wanted.

    `last_attempt`: workers died or broke down over this job, and it will not be tried again.
    """
    _thread.cancelled = cancelled
    _thread.last_attempt = last_attempt


def last_attempt() -> bool:
    """Whether the job of the calling thread has used up its retries."""
    return getattr(_thread, "last_attempt", False)


def stop_check() -> Callable[[], bool]:
    """A question for any thread: should the job of the *calling* thread stop?

    True once the worker is stopping, the job was stopped, or another worker took it over.
    """
    cancelled: threading.Event = getattr(_thread, "cancelled", None) or threading.Event()
    stopping = current().stopping
    return lambda: stopping.is_set() or cancelled.is_set()


def cancel_check() -> Callable[[], bool]:
    """Like :func:`stop_check`, but a warm shutdown alone does not count: the job may finish."""
    cancelled: threading.Event = getattr(_thread, "cancelled", None) or threading.Event()
    return cancelled.is_set
