"""Run a live stream in an ingest slot: connect, and reconnect for as long as it is attached."""

from collections.abc import Callable

import redis
import structlog

from streamer.clock import Clock
from streamer.domain.stream import StreamSpec, StreamState
from streamer.errors import ErrorCode, StreamerError, Superseded
from streamer.frames.sampled_frame import SampledFrame
from streamer.media.packet_reader import PacketReader
from streamer.media.source import DecodedFrame, Source
from streamer.media.source_errors import clock_wrong, closed
from streamer.redis_client.errors import trouble_of
from workers.context import GiveBack, WorkerContext
from workers.ingest.backoff import Backoff
from workers.ingest.clips import LiveClips
from workers.ingest.failures import unexpected
from workers.ingest.source_counter import RateMeter, SourceCounter
from workers.ingest.stream_run import NAP, StreamRun
from workers.ingest.stream_watches import StreamWatches
from workers.ingest.stream_writer import StreamWriter

_MAX_DAMAGED = 5.0
"""Seconds for which damaged pictures of a camera are skipped; then one is better than none."""

_MIN_STEP = 0.04
"""Seconds of stream time, at least, between the last frame of a connection and the first of the
next: the wall clock of a first frame is a guess that may lie before."""

_MIN_SHARE = 0.5
"""Share of the sampling interval that lies between two stored frames at least, by their capture
times. Frames that come together, and whose timestamps do not tell when they were captured, are
dated by their arrival."""

_MAX_DISAGREEMENT = 30.0
"""Seconds between the wall clock and the monotonic clock that the network may explain; more is a
clock that was set."""

_MAX_HANGING = 2
"""Connections of one stream that FFmpeg may still be closing when another is opened."""

_log = structlog.get_logger(__name__)


class StreamTimeline:
    """The stream time of a live stream across its connections: time without one passes too.

    Args:
        clock: measures the time between two connections, in case the wall clock was set.
        position, last_time: of the newest frame of an earlier worker.

    Attributes:
        shift: seconds that stream time is ahead of the time of the current connection.
        position: stream time of the newest frame, seconds.
        last_time: when the newest frame was captured, seconds since the Unix epoch; None before
            the first one.
    """

    def __init__(self, clock: Clock, position: float = 0.0, last_time: float | None = None) -> None:
        self._clock = clock
        self._placed_at: float | None = None  # monotonic
        self.shift = 0.0
        self.position = position
        self.last_time = last_time

    def align(self, frame: DecodedFrame) -> None:
        """Let stream time continue at the first frame of a connection."""
        if self.last_time is None:
            return
        passed = frame.time - self.last_time
        if self._placed_at is not None:
            elapsed = self._clock.monotonic() - self._placed_at
            if abs(elapsed - passed) > _MAX_DISAGREEMENT:
                passed = elapsed
        self.shift = self.position + max(_MIN_STEP, passed) - frame.pts

    def place(self, frame: DecodedFrame) -> float:
        """Return the stream time of the next frame."""
        self.position = frame.pts + self.shift
        self.last_time = frame.time
        self._placed_at = self._clock.monotonic()
        return self.position


class LiveRun(StreamRun):
    """Reads a live stream, reconnecting for ever.

    A camera does not wait: what cannot be stored or asked in time is dropped, and counted.
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
        super().__init__(context, spec, stop=stop, clock=clock)
        self.source_counter = SourceCounter(self.counters, RateMeter(self._clock))
        self.clips = LiveClips(
            context.jobs,
            context.settings,
            self.counters,
            context.connections.outage,
            self.token,
            self._clock,
        )
        self.clips.resume(spec)
        resumed = self.counters.sampled > 0
        self.watches = StreamWatches(spec, self.clips.submit, resumed)
        self._backoff = backoff or Backoff(context.settings.reconnect_cap)
        seen = self._reporter.status.last_frame_at  # by an earlier worker
        self._timeline = StreamTimeline(
            self._clock,
            self.counters.position,
            seen.timestamp() if seen is not None else None,
        )
        self._first_attempt = True  # connecting, not reconnecting
        self._reopen = False  # an edit needs another connection
        self._has_run = False
        self._good_since: float | None = None  # monotonic, of this connection's first frame
        self._intact_until = 0.0  # stream time of the newest stored frame
        self._sampled_at = 0.0  # its capture time
        self._readers: list[PacketReader] = []
        self._late = self.counters.dropped.late  # counted in the worker's sum
        self._place.allow_moves()
        frames_outage = context.connections.frames_outage
        self._writer = StreamWriter(refused=lambda: frames_outage.reason is not None)

    @property
    def open_connections(self) -> int:
        """Connections that are open, or that FFmpeg was still closing when the last was opened."""
        return len(self._readers)

    def _run(self) -> None:
        try:
            with self._writer, self._context.video.outlet(self.spec.id) as self._video:
                self._writer.then(self._claim)
                self._read()
        finally:
            self.source_counter.lost(frames=self._writer.waiting)

    def _read(self) -> None:
        while not self._stopping():
            if self.spec.paused:
                self._stay_paused()
                continue
            if self._first_attempt:
                self._reporter.enter(StreamState.CONNECTING)
            self._first_attempt = self._reopen = False
            failure = self._attempt()
            if failure is not None:
                # It is tried again, although nothing that the camera does will help.
                hopeless = failure.code is ErrorCode.SECRET_UNREADABLE
                state = StreamState.FAILED if hopeless else StreamState.RECONNECTING
                self._reporter.enter(state, failure)
                self._rest(self._backoff.delay(failure.code))
        raise GiveBack

    def _rest(self, seconds: float) -> None:
        """Wait without a slot, which a stream that can be read may need, then take one."""
        self._place.rest()
        self._wait(seconds)
        while self._hanging() and not self._leaving():
            self._wait(NAP)
        self._take_slot()

    def _attempt(self) -> StreamerError | None:
        """Open one connection and read it until it is lost. Return why it was lost; None when it
        ended for another reason."""
        self._good_since = None
        try:
            with self._connect() as source:
                self._consume(source)
            failure = closed(self.spec.url)
        except Superseded:
            raise
        except StreamerError as error:
            # A copy, because the traceback would keep the decoder alive until Python looks for
            # rings of objects: it refers to this frame, and this frame to the error.
            failure = StreamerError(error.code, error.message)
        except redis.exceptions.RedisError as error:
            self._context.connections.outage.failed("streams", error)
            failure = trouble_of(error).error
        except Exception as error:
            failure = unexpected(error, self.spec.name)
        self.source_counter.close()
        self._backoff.note_uptime(self._good_for)
        if self._stopping():
            return None
        if self._timeline.last_time is not None:
            # Ask now about what was seen before the loss: it would be stale when frames return.
            end = self._timeline.position
            self._writer.then(lambda: self.watches.finish(end))
        return None if self._leaving() else failure

    def _connect(self) -> Source:
        tap = self._video.tap(self._settings.max_live_pixels)
        source = self._open(shift=lambda: self._timeline.shift, tap=tap)
        self._readers = [old for old in self._readers if not old.released] + [source.reader]
        return source

    def _consume(self, source: Source) -> None:
        self._count(source)
        first, warned = True, (False, False)
        for frame in source:
            if first:
                self._timeline.align(frame)
                self._connected()
                first = False
            self._take(frame)
            if warned != (source.by_arrival, self.intake.scaled):
                warned = (source.by_arrival, self.intake.scaled)
                self._warn(*([clock_wrong(self.spec.url)] if source.by_arrival else []))

    def _connected(self) -> None:
        if self._has_run:
            self.counters.reconnects += 1
        self._has_run = True
        self._reporter.warn()
        self._good_since = self._clock.monotonic()
        self._context.connections.outage.worked("streams")
        self._reporter.enter(StreamState.RUNNING)

    def _take(self, frame: DecodedFrame) -> None:
        """Sample a frame, store it and ask about the windows that it completes."""
        pts = self._timeline.place(frame)
        self.counters.position = pts
        self._reporter.last_frame = frame.time
        if frame.image.is_corrupt and pts < self._intact_until + _MAX_DAMAGED:
            return
        if self._in_burst(frame) or not self.intake.keeps(pts, frame.image):
            # The writer has nothing to do until a window ends, so its thread is not woken before.
            if pts >= self.watches.ends_at:
                self._writer.then(lambda: self.watches.advance(pts), replaceable=True)
            return
        (sampled,) = self.intake.encode([frame._replace(pts=pts)])
        quiet = self.intake.sampler.due - pts
        if self._writer.offer(len(sampled.jpeg), lambda: self._store(sampled, quiet)):
            self._intact_until, self._sampled_at = pts, frame.time
        else:
            self.source_counter.lost()

    def _in_burst(self, frame: DecodedFrame) -> bool:
        """Return whether a frame was captured when the newest stored one was, as far as known."""
        since = frame.time - self._sampled_at  # negative: the clock of this machine was set back
        return 0 <= since < _MIN_SHARE / self.spec.sampling.max_fps

    def _store(self, sampled: SampledFrame, quiet: float) -> None:
        """Store a frame and ask about the windows that it completes; no frame will follow within
        `quiet` seconds of stream time."""
        outage = self._context.connections.frames_outage
        try:
            (ref,) = self.intake.put([sampled])
        except redis.exceptions.RedisError as error:
            outage.failed("frames", error)
            self.source_counter.lost(error)
            return
        outage.worked("frames")
        if self._context.archive is not None:
            self.counters.dropped.archive += self._context.archive.put(ref, sampled.jpeg)
        self.watches.add(ref, quiet)
        self.counters.sampled += 1

    def _in_order(self, step: Callable[[], None]) -> None:
        self._writer.then(step)

    def _stay_paused(self) -> None:
        super()._stay_paused()
        self._first_attempt, self._has_run = True, False

    def _look(self, *, fresh: bool = False) -> None:
        super()._look(fresh=fresh)
        late, self._late = self.counters.dropped.late - self._late, self.counters.dropped.late
        self._context.note_late(late)

    def _leaving(self) -> bool:
        return self._stopping() or self._reopen or self.spec.paused

    def _follow(self, before: StreamSpec, now: StreamSpec) -> None:
        if (now.url_version, now.transport) != (before.url_version, before.transport):
            self._reopen = self._first_attempt = True
            self._has_run = False
            self._backoff.reset()
        super()._follow(before, now)

    @property
    def _good_for(self) -> float:
        """Seconds for which this connection has delivered frames."""
        return self._clock.monotonic() - self._good_since if self._good_since is not None else 0.0

    def _hanging(self) -> bool:
        """Return whether FFmpeg still holds too many old connections."""
        return sum(not reader.released for reader in self._readers) >= _MAX_HANGING
