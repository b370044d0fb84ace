"""Distribute events to all listeners of this process: one reader of Redis, and a queue for each."""

import asyncio
import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial

import redis
import structlog
from fastapi.sse import ServerSentEvent
from starlette.concurrency import run_in_threadpool

from streamer import redis_keys
from streamer.domain.record import Record
from streamer.domain.timestamp import Timestamp, utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.events import Event, EventFilter, Events, EventType, event_order
from streamer.health.worker_states import WorkerStates
from streamer.redis_client.errors import will_pass
from streamer.redis_client.outage import Outage

_log = structlog.get_logger(__name__)

MAX_LISTENERS = 2000
"""Listeners of one process."""

MAX_QUEUED_EVENTS = 1000
"""Events that wait for one listener; one that is further behind is slow."""

_PAGE = 256
_BLOCK = 0.2
"""Seconds for which the reader waits before it looks whether it is to stop, or to wait for the
pieces of another answer too."""

_LOOK_INTERVAL = 2.0
"""Seconds between two looks at the workers."""

_STARTUP = 5.0
"""Seconds to wait for the reader's first position; Redis may be away."""


class Hello(Record):
    """Data of the first notice."""

    now: Timestamp
    oldest: str | None


class Resync(Record):
    """Data of a notice of a gap."""

    reason: str


_TOO_OLD = Resync(reason="The events after this position are no longer kept.")
_TOO_SLOW = Resync(reason="This listener is too slow, so events were dropped.")
_GIVEN_UP = Resync(reason="Redis was full or lost its data, so events are missing.")


@dataclass(frozen=True)
class Notice:
    """What a listener receives: an event, `hello`, or `resync`.

    Attributes:
        name: the type of the event, `hello` or `resync`.
        position: the place to go on from, an event's id.
        data: JSON.
    """

    name: str
    position: str
    data: str

    @cached_property
    def sse(self) -> ServerSentEvent:
        """The notice as a server-sent event."""
        return ServerSentEvent(event=self.name, id=self.position, raw_data=self.data)


def _resync(why: Resync, position: str) -> Notice:
    return Notice("resync", position, why.model_dump_json())


def _notice(event: Event) -> Notice:
    return _resync(_GIVEN_UP, event.id) if event.lost else Notice(event.type, event.id, event.json)


class _Listener:
    """The queue of one listener."""

    def __init__(self, wants: EventFilter) -> None:
        self._wants = wants
        self._queue: deque[tuple[Event, Notice]] = deque()
        self._news = asyncio.Event()
        self.slow = False

    def offer(self, event: Event, notice: Notice) -> None:
        if not (event.lost or self._wants(event)) or self.slow:
            return
        if len(self._queue) >= MAX_QUEUED_EVENTS:
            self.slow = True
            self._queue.clear()
        else:
            self._queue.append((event, notice))
        self._news.set()

    async def take(self) -> list[tuple[Event, Notice]]:
        """Wait for events, and return them; none if the listener was too slow."""
        await self._news.wait()
        self._news.clear()
        taken = list(self._queue)
        self._queue.clear()
        return taken


class Awaited:
    """A query that a request waits for.

    Attributes:
        news: set when there is more of its answer, or when it may have ended.
        ended: whether it may have ended.
    """

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self.ended = False

    async def wait(self, seconds: float) -> bool:
        """Wait for news; return whether the query may have ended."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.news.wait(), seconds)
        ended, self.ended = self.ended, False
        self.news.clear()
        return ended


@dataclass(frozen=True)
class Start:
    """Where a listener begins.

    Attributes:
        position: the id of the event after which it begins.
        hello: its first notice.
        kept: whether all events after the place that it named are kept.
    """

    position: str
    hello: Notice
    kept: bool


class EventHub:
    """The listeners of this process.

    The reader is a thread, started for the first listener. All other methods belong to the event
    loop.
    """

    def __init__(self, events: Events, workers: WorkerStates, outage: Outage) -> None:
        self._events = events
        self._workers = workers
        self._outage = outage
        self._listeners: set[_Listener] = set()
        self._awaited: dict[str, list[Awaited]] = {}
        self._followed: dict[str, int] = {}  # how many wait for pieces, by the key of these
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: asyncio.Event = asyncio.Event()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def listeners(self) -> int:
        """How many listen now."""
        return len(self._listeners)

    async def start(self) -> None:
        """Start the reader, unless it runs, and wait until it knows where to begin."""
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._read, name="events", daemon=True)
            self._thread.start()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._ready.wait(), _STARTUP)

    def close(self) -> None:
        """Stop the reader."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    async def begin(self, after: str | None) -> Start:
        """Find where a listener begins: after the id `after`, or now.

        Raises StreamerError(TOO_MANY_LISTENERS), redis.exceptions.RedisError.
        """
        if self.listeners >= MAX_LISTENERS:
            raise StreamerError(
                ErrorCode.TOO_MANY_LISTENERS,
                f"This server has {MAX_LISTENERS} listeners: close some, or start another server.",
            )
        await self.start()
        return await run_in_threadpool(self._begin, after)

    def _begin(self, after: str | None) -> Start:
        position = self._events.position()
        kept = after is None or self._events.kept_since(after)
        if after is not None and kept:
            position = after
        hello = Hello(now=utc_now(), oldest=self._events.oldest())
        return Start(position, Notice("hello", position, hello.model_dump_json()), kept)

    async def follow(self, start: Start, wants: EventFilter) -> AsyncGenerator[Notice, None]:
        """Yield `hello`, then events as they come, and `resync` wherever some are missing.

        It ends, after a `resync`, when the listener is too slow.
        """
        yield start.hello
        if not start.kept:
            yield _resync(_TOO_OLD, start.position)
        listener = _Listener(wants)
        self._listeners.add(listener)
        position = start.position
        try:
            async for event, notice in self._since(position, listener):
                if event_order(event.id) <= event_order(position):
                    continue  # it came while the ones before it were read
                position = event.id
                if event.lost or wants(event):
                    yield notice
            yield _resync(_TOO_SLOW, position)
        finally:
            self._listeners.discard(listener)

    async def _since(
        self, position: str, listener: _Listener
    ) -> AsyncIterator[tuple[Event, Notice]]:
        """Yield the events after `position`, then those of the queue, until it overflows."""
        page: list[Event] = []
        while not listener.slow:
            try:
                page = await run_in_threadpool(self._events.read, position, None, _PAGE)
            except redis.exceptions.RedisError as error:
                self._outage.failed("events", error)  # the reader says when it is over
                await asyncio.sleep(self._outage.max_pause)
                continue
            for event in page:
                yield event, _notice(event)
                position = event.id
            if len(page) < _PAGE:
                break
        while not listener.slow:
            for event, notice in await listener.take():
                yield event, notice

    @contextlib.contextmanager
    def awaiting(self, query_id: str, *, pieces: bool = False) -> Iterator["Awaited"]:
        """Register for the end of a query and, with `pieces`, for more of its answer."""
        awaited = Awaited()
        key = redis_keys.deltas(query_id)
        self._awaited.setdefault(query_id, []).append(awaited)
        if pieces:
            self._followed[key] = self._followed.get(key, 0) + 1
        try:
            yield awaited
        finally:
            self._awaited[query_id].remove(awaited)
            if not self._awaited[query_id]:
                del self._awaited[query_id]
            if pieces:
                self._followed[key] -= 1
                if not self._followed[key]:
                    del self._followed[key]

    def _distribute(self, events: list[Event], grown: Iterable[str]) -> None:
        for event in events:
            notice = _notice(event)
            for listener in self._listeners:
                listener.offer(event, notice)
            if event.lost:
                for query_id in list(self._awaited):
                    self._wake(query_id, ended=True)
            elif event.type == EventType.QUERY_FINISHED and self._awaited:
                self._wake(json.loads(event.data)["id"], ended=True)
        for key in grown:
            self._wake(key.removeprefix(redis_keys.deltas("")))

    def _wake(self, query_id: str, *, ended: bool = False) -> None:
        for awaited in self._awaited.get(query_id, ()):
            awaited.ended = awaited.ended or ended
            awaited.news.set()

    # In the reader's thread

    def _read(self) -> None:
        position, looked, doubt = "", float("-inf"), False
        heads: dict[str, str] = {}  # how far the pieces of each answer have been announced
        pauses = self._outage.pauses()
        while not self._closed.is_set():
            try:
                if not position:
                    position = self._events.position()
                    self._tell(self._ready.set)
                if time.monotonic() - looked >= _LOOK_INTERVAL:
                    looked = time.monotonic()
                    self._workers.look()
                heads = {key: heads.get(key, "0-0") for key in list(self._followed)}
                events, grown = self._events.read_beside(position, heads, _BLOCK, _PAGE)
                if doubt or len(events) == _PAGE:  # it may have fallen behind what is kept
                    events = self._events.gap_after(position) + events
            except redis.exceptions.RedisError as error:
                if self._closed.is_set():
                    return
                if not will_pass(error):
                    _log.error("redis_refuses", reason=str(error))
                self._outage.failed("events", error)
                self._closed.wait(next(pauses))
                doubt = True
                continue
            doubt = False
            self._outage.worked("events")
            pauses = self._outage.pauses()
            heads |= grown
            if events:
                position = events[-1].id
            if events or grown:
                self._tell(partial(self._distribute, events, grown))

    def _tell(self, call: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call)
