"""The whole life of one stream in an ingest slot, from connecting to its end."""

import math
import time
from collections.abc import Callable
from typing import TypeVar

import av
import cv2
import redis
import structlog

from streamer.clock import Clock, SystemClock
from streamer.domain import FrameRef, StreamSpec, StreamState, to_datetime
from streamer.errors import ErrorCode, StreamerError
from streamer.frames import FrameStore
from streamer.media import failures
from streamer.media.pictures import ChangeMeter, to_bgr, to_jpeg
from streamer.media.reconnect import Backoff
from streamer.media.sampler import FpsSampler
from streamer.media.source import DecodedFrame, Source
from workers.context import GiveBack, WorkerContext
from workers.stream_status import StatusReporter
from workers.stream_watches import StreamWatches, frames_to_keep, resume_from

T = TypeVar("T")

_LOOK = 0.5
"""Seconds between two looks at whether the stream is still attached, and how."""

_NAP = 0.25

_log = structlog.get_logger(__name__)


class StreamRun:
    """Decodes, samples, stores and asks, until detached, stopped, or a recording ends.

    A live stream is reconnected for ever. A recording is read as fast as its clips are answered,
    and nothing of it is dropped; one that a worker left half-way goes on where it was.
    """

    def __init__(
        self,
        context: WorkerContext,
        spec: StreamSpec,
        *,
        stop: Callable[[], bool],
        clock: Clock | None = None,
        backoff: Backoff | None = None,
    ) -> None:
        self._context = context
        self._settings = context.settings
        self._spec = spec
        self._stop = stop
        self._clock = clock or SystemClock()
        self._backoff = backoff or Backoff(context.settings.reconnect_cap)
        self._reporter = StatusReporter(context.streams, spec.id, spec.name, self._clock)
        self._counters = self._reporter.counters
        self._sampler = FpsSampler(spec.sampling.fps)
        self._change = ChangeMeter()
        self._watches = StreamWatches(
            spec,
            context.jobs,
            context.settings,
            self._counters,
            pause=self._pause,
            insist=self._insist,
        )
        self._frames = self._frame_store()
        self._looked_at = -math.inf
        self._deleted = False
        self._ran = False
        self._reached: float | None = None  # stream time of the newest stored frame, if resumed
        self._last: tuple[float, float] | None = None  # stream time and wall clock
        self._shift = 0.0

    def run(self) -> None:
        """Run until there is nothing left to do.

        Raises GiveBack when the worker stops first: another one is to go on.
        """
        try:
            if self._spec.live:
                self._run_live()
            else:
                self._run_recording()
        except GiveBack:
            self._look()
            if not self._deleted:
                self._reporter.save()
                raise
        if self._deleted:  # whoever detached it cleared up, but a frame may have come after
            self._context.frames.discard(self._spec.id)

    def _run_live(self) -> None:
        self._reporter.enter(StreamState.CONNECTING)
        while not self._stopping():
            failure = self._attempt()
            if failure is None:
                break
            delay = self._backoff.delay(failure.code)
            self._reporter.enter(StreamState.RECONNECTING, failure)
            self._wait(delay)
        raise GiveBack

    def _attempt(self) -> StreamerError | None:
        """One connection, from opening to its loss: why it was lost, None when stopping."""
        began = self._clock.monotonic()
        try:
            with self._open() as source:
                began = self._clock.monotonic()
                self._consume(source)
            failure = failures.closed(self._spec.url)
        except StreamerError as error:
            failure = error
        except redis.exceptions.RedisError as error:
            failure = _redis_away(error)
        except Exception as error:
            failure = _unexpected(error, self._spec)
        self._backoff.ran(self._clock.monotonic() - began)
        if self._stopping():
            return None
        if self._last is not None:  # what was seen before the loss is not kept until it is stale
            self._watches.finish(self._last[1])
        return failure

    def _run_recording(self) -> None:
        if self._reporter.status.state is StreamState.ENDED:
            return
        self._reporter.enter(StreamState.CONNECTING)
        failure: StreamerError | None = None
        try:
            with self._open(self._resume()) as source:
                self._consume(source)
        except GiveBack:
            raise
        except StreamerError as error:
            failure = error
        except Exception as error:
            failure = _unexpected(error, self._spec)
        if self._stopping():
            raise GiveBack
        if self._last is not None:
            whole = self._counters.duration or 0.0
            end = self._last[0] if failure is not None else max(whole, self._last[0])
            self._watches.finish(end)
        state = StreamState.ENDED if failure is None else StreamState.FAILED
        self._reporter.enter(state, failure)

    def _open(self, start: float = 0.0) -> Source:
        return Source(
            self._context.streams.secret_url(self._spec.id),
            live=self._spec.live,
            open_timeout=self._settings.open_timeout,
            read_timeout=self._settings.read_timeout,
            stopping=self._stopping,
            origin=self._spec.created_at.timestamp(),
            start=start,
            clock=self._clock,
        )

    def _consume(self, source: Source) -> None:
        info, counters = source.info, self._counters
        counters.codec, counters.fps, counters.duration = info.codec, info.fps, info.duration
        packets, decoded, dropped = counters.packets, counters.decoded, counters.dropped
        first = True
        for frame in source:
            if first:
                self._align(frame)
                self._connected()
                first = False
            counters.packets = packets + source.packets
            counters.decoded = decoded + source.decoded
            dropped += self._take(frame)
            counters.dropped = dropped + source.dropped
            self._reporter.tick()

    def _align(self, frame: DecodedFrame) -> None:
        """Let the stream time of a live stream go on through the time that it was away."""
        if not self._spec.live:
            return
        last = self._last
        status = self._reporter.status
        if last is None and status.last_frame_at is not None:
            last = (self._counters.position, status.last_frame_at.timestamp())
        if last is not None:
            self._shift = last[0] + max(0.0, frame.time - last[1]) - frame.pts

    def _connected(self) -> None:
        if self._ran:
            self._counters.reconnects += 1
        self._ran = True
        self._reporter.enter(StreamState.RUNNING)

    def _take(self, frame: DecodedFrame) -> int:
        """Sample, store and ask; returns how many frames were lost in doing so (0 or 1)."""
        pts = frame.pts + self._shift
        self._last = (pts, frame.time)
        counters = self._counters
        counters.position = pts
        seen_at = frame.time if self._spec.live else self._clock.time()
        self._reporter.status.last_frame_at = to_datetime(seen_at)
        if self._reached is not None and pts <= self._reached:
            return 0
        if not self._sampler.keep(pts):
            return 0
        try:
            self._store(frame, pts)
        except redis.exceptions.RedisError as error:  # a camera does not wait
            _log.warning("frame_lost", stream=self._spec.name, reason=type(error).__name__)
            return 1
        counters.sampled += 1
        return 0

    def _store(self, frame: DecodedFrame, pts: float) -> None:
        began = time.perf_counter()
        try:
            bgr = to_bgr(frame.image)
            jpeg = to_jpeg(bgr, self._settings.jpeg_quality)
            change = self._change.measure(frame.image)
        except (av.FFmpegError, cv2.error, ValueError):
            raise failures.cannot_decode(self._spec.url, self._counters.codec) from None
        height, width = bgr.shape[:2]
        self._counters.width, self._counters.height = frame.image.width, frame.image.height
        cost = frame.decode_ms + (time.perf_counter() - began) * 1000
        ref: FrameRef = self._insist(
            lambda: self._frames.add(
                self._spec.id,
                jpeg=jpeg,
                time=frame.time,
                pts=pts,
                width=width,
                height=height,
                change=change,
                decode_ms=cost,
            )
        )
        # A recording is in no hurry, and its last window ends where it does.
        self._watches.add(ref, quiet=self._sampler.due - pts if self._spec.live else 0.0)

    def _resume(self) -> float:
        """Take up a recording where the worker before this one left it; where to read on from."""
        frames = self._insist(self._stored)
        if not frames:
            return 0.0
        self._reached = frames[-1].pts
        self._watches.resume(frames)
        self._sampler.keep(self._reached)
        return self._reached

    def _stored(self) -> list[FrameRef]:
        """The stored frames of the windows that may still have to be asked about."""
        newest = self._frames.newest(self._spec.id)
        if not newest:
            return []
        reached = newest[-1].pts
        since = min((resume_from(w, reached) for w in self._spec.watches), default=reached)
        origin = self._spec.created_at.timestamp()
        return self._frames.between(self._spec.id, origin + since, newest[-1].time + 1)

    def _frame_store(self) -> FrameStore:
        spec, settings = self._spec, self._settings
        ttl = settings.frame_ttl if spec.live else settings.recorded_frame_ttl
        longest = max((watch.window for watch in spec.watches), default=0.0)
        return FrameStore(
            self._context.connections.frames,
            ttl=max(ttl, 2 * longest),
            max_frames=frames_to_keep(spec, settings),
        )

    def _stopping(self) -> bool:
        """Whether to end now; looks into the registry now and then."""
        if self._stop():
            return True
        if self._clock.monotonic() - self._looked_at >= _LOOK:
            self._look()
        return self._deleted

    def _look(self) -> None:
        self._looked_at = self._clock.monotonic()
        try:
            spec = self._context.streams.find(self._spec.id)
        except redis.exceptions.RedisError:
            return  # nobody knows: go on
        if spec is None:
            self._deleted = True
        elif spec != self._spec:
            if spec.sampling != self._spec.sampling:
                self._sampler = FpsSampler(spec.sampling.fps)
            self._spec = spec
            self._watches.follow(spec)
            self._frames = self._frame_store()

    def _wait(self, seconds: float) -> None:
        """Sleep, but no longer than until it is time to stop."""
        until = self._clock.monotonic() + seconds
        while not self._stopping() and (left := until - self._clock.monotonic()) > 0:
            self._clock.sleep(min(_NAP, left))

    def _pause(self) -> None:
        """A recording waits for its clips to be answered."""
        self._reporter.tick()
        self._wait(_NAP)
        if self._stopping():
            raise GiveBack

    def _insist(self, call: Callable[[], T]) -> T:
        """`call()`, repeated while Redis is away, for recordings: nothing of them is lost."""
        while True:
            try:
                return call()
            except redis.exceptions.RedisError as error:
                if self._spec.live:
                    raise
                _log.warning("redis_away", stream=self._spec.name, reason=type(error).__name__)
                self._wait(1.0)
                if self._stopping():
                    raise GiveBack from None


def _redis_away(error: redis.exceptions.RedisError) -> StreamerError:
    return StreamerError(
        ErrorCode.REDIS_UNAVAILABLE,
        f"Redis does not answer ({type(error).__name__}): check that it runs.",
    )


def _unexpected(error: Exception, spec: StreamSpec) -> StreamerError:
    _log.exception("stream_crashed", stream=spec.name)
    return StreamerError(
        ErrorCode.INTERNAL,
        f"Unexpected {type(error).__name__}: see the ingest worker's log, and report it.",
    )
