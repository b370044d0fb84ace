"""The whole life of one stream in an ingest slot, from connecting to its end."""

import time
from collections.abc import Callable
from typing import TypeVar

import av
import cv2
import redis
import structlog

from nvila_core.resolution.meter import Meter
from streamer.clock import Clock, SystemClock
from streamer.domain import FrameRef, StreamSpec, StreamState, to_datetime
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.jpeg import to_bgr, to_jpeg
from streamer.frames.store import FrameStore, Retention
from streamer.media import errors as failures
from streamer.media.access_policy import Access
from streamer.media.packet_reader import PacketReader
from streamer.media.sampler import make_sampler
from streamer.media.source import DecodedFrame, Source
from workers.context import Abandon, GiveBack, WorkerContext
from workers.ingest import failures as stream_failures
from workers.ingest.backoff import Backoff
from workers.ingest.spec_follower import Attachment
from workers.ingest.status_reporter import StatusReporter
from workers.ingest.stream_counters import RateMeter, Tally
from workers.ingest.stream_watches import StreamWatches, frames_to_keep, resume_from

T = TypeVar("T")

_NAP = 0.25

_PATCHED = 5.0
"""Seconds for which a camera's damaged pictures are passed over; then one is better than none."""

_STEP = 0.04
"""Seconds of stream time between the last frame of a connection and the first of the next, at
least: the wall clock of a first frame is a guess that may lie before."""

_MOST_HANGING = 2
"""Connections of one stream that FFmpeg may still be closing when another is opened."""

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
        self._attachment = Attachment(
            context.streams, spec, lease=context.settings.lease, clock=self._clock
        )
        self._backoff = backoff or Backoff(context.settings.reconnect_cap)
        self._reporter = StatusReporter(
            context.streams, spec.id, spec.name, context.worker_name, self._clock
        )
        self._counters = self._reporter.counters
        self._tally = Tally(self._counters, RateMeter(self._clock) if spec.live else None)
        self._sampler = make_sampler(spec.sampling)
        self._meter = Meter(bgr=True)
        self._watches = StreamWatches(
            spec,
            context.jobs,
            context.settings,
            self._counters,
            pause=self._pause,
            insist=self._insist,
        )
        self._frames = self._frame_store()
        self._afresh = True  # connecting, not reconnecting
        self._reopen = False  # what was edited takes another connection
        self._ran = False
        self._good_since: float | None = None  # monotonic, of this connection's first frame
        self._opened: list[PacketReader] = []
        self._reached: float | None = None  # stream time of the newest stored frame, if resumed
        self._last: tuple[float, float] | None = None  # stream time and wall clock
        self._shift = 0.0
        self._whole = 0.0  # stream time of the newest stored frame

    def run(self) -> None:
        """Run until there is nothing left to do.

        Raises GiveBack when the worker stops first, and another one is to go on; Abandon when
        Redis was away for so long that another one may have begun.
        """
        try:
            if self._spec.live:
                self._run_live()
            else:
                self._run_recording()
        except GiveBack:
            if self._attachment.lost:
                raise Abandon from None
            self._look()
            if not self._attachment.detached:
                self._reporter.save()
                raise
        if self._attachment.detached:
            # whoever detached it cleared up, but a frame may have come after
            self._context.frames.discard(self._spec.id)

    def _run_live(self) -> None:
        while not self._stopping():
            if self._spec.paused:
                self._stay_paused()
                continue
            if self._afresh:
                self._reporter.enter(StreamState.CONNECTING)
            self._afresh = self._reopen = False
            failure = self._attempt()
            if failure is not None:
                # Tried again, but nothing that the camera does will help.
                hopeless = failure.code is ErrorCode.SECRET_UNREADABLE
                state = StreamState.FAILED if hopeless else StreamState.RECONNECTING
                self._reporter.enter(state, failure)
                self._wait(self._backoff.delay(failure.code))
                while self._hanging() and not self._leaving():
                    self._wait(_NAP)
        raise GiveBack

    def _attempt(self) -> StreamerError | None:
        """One connection, from opening to its loss: why it was lost; None when there is another
        reason to end it."""
        self._good_since = None
        try:
            with self._open() as source:
                self._consume(source)
            failure = failures.closed(self._spec.url)
        except StreamerError as error:
            failure = error
        except redis.exceptions.RedisError as error:
            failure = stream_failures.redis_away(error)
        except Exception as error:
            failure = stream_failures.unexpected(error, self._spec.name)
        self._tally.close()
        self._backoff.ran(self._good_for)
        if self._stopping():
            return None
        if self._last is not None:  # what was seen before the loss is not kept until it is stale
            self._watches.finish(self._last[1])
        # A copy: its traceback would keep the decoder through all of the next connection.
        return None if self._leaving() else StreamerError(failure.code, failure.message)

    def _stay_paused(self) -> None:
        self._reporter.enter(StreamState.PAUSED)
        while self._spec.paused and not self._stopping():
            self._clock.sleep(_NAP)
        self._afresh, self._ran = True, False

    @property
    def _good_for(self) -> float:
        """Seconds that this connection has given frames."""
        return self._clock.monotonic() - self._good_since if self._good_since is not None else 0.0

    def _hanging(self) -> bool:
        """Whether FFmpeg still holds too many old connections to let go of."""
        return sum(not reader.released for reader in self._opened) >= _MOST_HANGING

    def _run_recording(self) -> None:
        if self._reporter.status.state is StreamState.ENDED:
            return
        if self._spec.paused:
            self._stay_paused()
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
            failure = stream_failures.unexpected(error, self._spec.name)
        self._tally.close()
        if self._stopping():
            raise GiveBack
        if self._last is not None:
            whole = self._counters.duration or 0.0
            end = self._last[0] if failure is not None else max(whole, self._last[0])
            self._watches.finish(end)
        state = StreamState.ENDED if failure is None else StreamState.FAILED
        self._reporter.enter(state, failure)

    def _open(self, start: float = 0.0) -> Source:
        source = Source(
            self._context.streams.secret_url(self._spec.id),
            live=self._spec.live,
            open_timeout=self._settings.open_timeout,
            read_timeout=self._settings.read_timeout,
            stopping=self._leaving,
            origin=self._spec.created_at.timestamp(),
            start=start,
            clock=self._clock,
            hwaccel=self._settings.hwaccel,
            transport=self._spec.transport,
            access=Access.of(self._settings),
            sampler=lambda: self._sampler,
            shift=lambda: self._shift,
        )
        self._opened = [old for old in self._opened if not old.released] + [source.reader]
        return source

    def _consume(self, source: Source) -> None:
        info, counters = source.info, self._counters
        counters.codec, counters.fps, counters.duration = info.codec, info.fps, info.duration
        self._tally.follow(source)
        first = True
        for frame in source:
            if first:
                self._align(frame)
                self._connected()
                first = False
            self._take(frame)
            if self._spec.paused and not self._spec.live:  # its file may stay open meanwhile
                self._stay_paused()
                self._reporter.enter(StreamState.RUNNING)

    def _align(self, frame: DecodedFrame) -> None:
        """Let the stream time of a live stream go on through the time that it was away."""
        if not self._spec.live:
            return
        last = self._last
        status = self._reporter.status
        if last is None and status.last_frame_at is not None:
            last = (self._counters.position, status.last_frame_at.timestamp())
        if last is not None:
            self._shift = last[0] + max(_STEP, frame.time - last[1]) - frame.pts

    def _connected(self) -> None:
        if self._ran:
            self._counters.reconnects += 1
        self._ran = True
        self._good_since = self._clock.monotonic()
        self._reporter.enter(StreamState.RUNNING)

    def _take(self, frame: DecodedFrame) -> None:
        """Sample, store and ask."""
        pts = frame.pts + self._shift
        self._last = (pts, frame.time)
        counters = self._counters
        counters.position = pts
        seen_at = frame.time if self._spec.live else self._clock.time()
        self._reporter.status.last_frame_at = to_datetime(seen_at)
        if self._reached is not None and pts <= self._reached:
            return
        if frame.image.is_corrupt and self._spec.live and pts < self._whole + _PATCHED:
            return
        if not self._sampler.keep(pts, frame.image):
            if self._spec.live:
                self._watches.advance(frame.time)
            return
        try:
            self._store(frame, pts)
        except redis.exceptions.RedisError as error:  # a camera does not wait
            _log.warning("frame_lost", stream=self._spec.name, reason=type(error).__name__)
            self._tally.lost(error)
            return
        counters.sampled += 1
        self._whole = pts

    def _store(self, frame: DecodedFrame, pts: float) -> None:
        began = time.perf_counter()
        try:
            bgr = to_bgr(frame.image)
            jpeg = to_jpeg(bgr, self._settings.jpeg_quality)
            measures = self._meter.measure(bgr)
        except (av.FFmpegError, cv2.error, ValueError):
            raise failures.cannot_decode(self._spec.url, self._counters.codec) from None
        self._counters.width, self._counters.height = frame.image.width, frame.image.height
        cost = frame.decode_ms + (time.perf_counter() - began) * 1000
        ref: FrameRef = self._insist(
            lambda: self._frames.put(
                self._spec.id, jpeg, measures, time=frame.time, pts=pts, decode_ms=cost
            )
        )
        if self._context.archive is not None and self._spec.live:
            self._counters.dropped.archive += self._context.archive.put(ref, jpeg)
        # A recording is in no hurry, and its last window ends where it does.
        self._watches.add(ref, quiet=self._sampler.due - pts if self._spec.live else 0.0)

    def _resume(self) -> float:
        """Take up a recording where the worker before this one left it; where to read on from."""
        frames = self._insist(self._stored)
        if not frames:
            return 0.0
        self._reached = frames[-1].pts
        self._watches.resume(frames)
        self._sampler.resume(self._reached)
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
        needed = frames_to_keep(self._spec, self._settings)
        retention = Retention.of_stream(self._spec, self._settings, needed)
        connections = self._context.connections
        return FrameStore(connections.frames, retention, memory=connections.frame_memory)

    def _stopping(self) -> bool:
        """Whether to end now; looks into the registry now and then."""
        if self._stop():
            return True
        if self._attachment.due:
            self._look()
        return self._attachment.detached or self._attachment.lost

    def _leaving(self) -> bool:
        """Whether to leave this connection, or the wait for the next one."""
        if self._stopping():
            return True
        return self._spec.live and (self._reopen or self._spec.paused)

    def _look(self) -> None:
        if self._attachment.look():
            self._follow(self._attachment.spec)
        self._tally.update()
        self._reporter.tick()

    def _follow(self, spec: StreamSpec) -> None:
        """Take over an edited spec."""
        before, self._spec = self._spec, spec
        self._reporter.name = spec.name
        if (spec.url_version, spec.transport) != (before.url_version, before.transport):
            self._reopen = self._afresh = True
            self._ran = False
            self._backoff.restart()
        if spec.sampling != before.sampling:
            self._sampler = make_sampler(spec.sampling)
        self._watches.follow(spec)
        self._frames = self._frame_store()

    def _wait(self, seconds: float) -> None:
        """Sleep, but no longer than until there is something else to do."""
        until = self._clock.monotonic() + seconds
        while not self._leaving() and (left := until - self._clock.monotonic()) > 0:
            self._clock.sleep(min(_NAP, left))

    def _pause(self) -> None:
        """A recording waits for its clips to be answered."""
        if self._spec.paused:
            self._stay_paused()
            self._reporter.enter(StreamState.RUNNING)
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
