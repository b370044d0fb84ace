"""What a worker process owns and its jobs need, found by them through this module."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from streamer.connections import Connections
from streamer.frames import FrameStore
from streamer.jobs import Jobs
from streamer.results import Results
from streamer.settings import Settings
from streamer.streams import StreamRegistry

if TYPE_CHECKING:
    from nvila_core import Engine


class GiveBack(Exception):  # noqa: N818 - a request, not an error
    """Raised by a job to be put back at the front of its queue; no retry is used up."""


class Abandon(Exception):  # noqa: N818
    """Raised by a job to be left as if its worker had died: it uses up a retry, elsewhere."""


@dataclass
class WorkerContext:
    """The resources of this process. All are safe to use from every slot."""

    settings: Settings
    connections: Connections
    engine: "Engine | None" = None
    model_name: str | None = None
    stopping: threading.Event = field(default_factory=threading.Event)
    failure: str | None = None

    def fail(self, reason: str) -> None:
        """This process can do no more good: stop it, with `reason` as its last word."""
        self.failure = self.failure or reason
        self.stopping.set()

    @cached_property
    def frames(self) -> FrameStore:
        """The frames of all streams."""
        return FrameStore(
            self.connections.frames,
            ttl=self.settings.frame_ttl,
            max_frames=self.settings.frames_per_stream,
        )

    @cached_property
    def streams(self) -> StreamRegistry:
        """The attached streams."""
        return StreamRegistry(self.connections.main)

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


def install(context: WorkerContext) -> None:
    """Make `context` this process's own; called once, by its main."""
    global _context
    _context = context


def current() -> WorkerContext:
    """The context of this process."""
    if _context is None:
        raise RuntimeError("no worker context: jobs run inside a worker process only")
    return _context


def enter_slot(cancelled: threading.Event) -> None:
    """Tell the calling thread which event says that its job is no longer wanted."""
    _thread.cancelled = cancelled


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
