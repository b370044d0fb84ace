"""Run one stream in an ingest slot: what live streams and recordings have in common."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable

import redis

from streamer.clock import Clock
from streamer.domain.stream import StreamSpec, StreamState
from streamer.errors import ErrorCode, StreamerError, Superseded
from streamer.media.access_policy import AccessPolicy
from streamer.media.packet_reader import Arrival
from streamer.media.source import Source
from streamer.media.source_errors import levels_scaled
from workers.context import Abandon, GiveBack, WorkerContext, place, token
from workers.ingest.frame_intake import FrameIntake
from workers.ingest.source_counter import SourceCounter
from workers.ingest.spec_follower import SpecFollower
from workers.ingest.status_reporter import StatusReporter
from workers.ingest.stream_watches import StreamWatches

NAP = 0.25
"""Seconds of sleep, at most, between two checks whether to stop."""

_SLOT_PATIENCE = 5.0
"""Seconds of waiting for a slot after which the stream says so."""

_NO_SLOT = StreamerError(
    ErrorCode.NO_WORKER,
    "All slots of the ingest workers are taken by other streams: start another `streamer ingest`, "
    "raise the setting ingest_slots, or pause a stream.",
)


class StreamRun(ABC):
    """Decodes a stream, stores its sampled frames and asks its watches about them.

    A subclass decides how the stream is read, and what happens when Redis or the source fails. It
    creates `source_counter` and `watches`.

    Args:
        context: the resources of the worker process.
        spec: the stream as it was attached.
        stop: returns whether the worker wants its slot back.
        clock: the time; that of the process by default.

    Attributes:
        follower: the stream's spec as it is attached now.
        counters: what is counted of the stream; continued from its last worker.
        intake: samples and stores its frames.
        watches: gathers the stored frames into windows.
        token: shows that this worker runs the stream; each of its writes is refused once another
            worker has taken the stream over.
        source_counter: adds what a connection counts to `counters`.
    """

    source_counter: SourceCounter
    watches: StreamWatches

    def __init__(
        self,
        context: WorkerContext,
        spec: StreamSpec,
        *,
        stop: Callable[[], bool],
        clock: Clock | None = None,
    ) -> None:
        self._context = context
        self._settings = context.settings
        self._stop = stop
        self._place = place()
        self._clock = clock or context.clock
        self.token = token()
        self.follower = SpecFollower(
            context.registry_batch, spec, lease=context.settings.lease, clock=self._clock
        )
        self._reporter = StatusReporter(
            context.registry_batch,
            context.streams.status(spec.id),
            spec.id,
            spec.name,
            context.worker_name,
            self._clock,
            context.connections.outage,
            self.token,
        )
        self.counters = self._reporter.counters
        self.intake = FrameIntake(context, spec, self.counters, self.token)

    @property
    def spec(self) -> StreamSpec:
        """The stream as it is attached now."""
        return self.follower.spec

    def run(self) -> None:
        """Run until nothing is left to do: the stream was detached, or a recording has ended.

        Raises GiveBack when the worker stops first, so that another one continues; Abandon when
        another one has taken over, or Redis was away for so long that one may have.
        """
        try:
            self._run_or_give_back()
        except Superseded:
            raise Abandon from None
        finally:
            self._context.registry_batch.leave(self.spec.id)
        if self.follower.detached:
            # Whatever detached it deleted its frames and windows, but one may have come since.
            self._context.frames.discard(self.spec.id)
            self._context.windows.forget(self.spec.id)

    def _claim(self) -> None:
        """Refuse the frames of a former owner, even before this one has stored any."""
        if self.token is not None:
            with contextlib.suppress(redis.exceptions.RedisError):  # each frame shows the token too
                self.intake.store.claim(self.spec.id, self.token)

    def _run_or_give_back(self) -> None:
        try:
            self._run()
        except GiveBack:
            if self.follower.lost:
                raise Abandon from None
            self._look(fresh=True)
            if not self.follower.detached:
                self._reporter.save()
                raise

    @abstractmethod
    def _run(self) -> None:
        """Read the stream until its end. Raises GiveBack when something else ends the run."""

    def _open(
        self,
        start: float = 0.0,
        shift: Callable[[], float] = lambda: 0.0,
        tap: Callable[[Arrival], None] | None = None,
    ) -> Source:
        """Return the stream's source, not opened yet; see `Source` for the arguments."""
        return Source(
            self._context.streams.secret_url(self.spec.id),
            live=self.spec.live,
            open_timeout=self._settings.open_timeout,
            read_timeout=self._settings.read_timeout,
            stopping=self._leaving,
            origin=self.spec.created_at.timestamp(),
            start=start,
            clock=self._clock,
            hwaccel=self._settings.hwaccel,
            transport=self.spec.transport,
            access=AccessPolicy.of(self._settings),
            sampler=lambda: self.intake.sampler,
            poll=1 / self.spec.sampling.max_fps,
            shift=shift,
            tap=tap,
        )

    def _count(self, source: Source) -> None:
        """Note what an open source is, and count what it delivers."""
        info, counters = source.info, self.counters
        counters.codec, counters.fps, counters.duration = info.codec, info.fps, info.duration
        self.source_counter.follow(source)

    def _warn(self, *others: StreamerError) -> None:
        """Replace the warnings about the stream: `others`, and that its pictures are scaled."""
        scaled = [levels_scaled(self.spec.url)] if self.intake.scaled else []
        self._reporter.warn(*others, *scaled)

    def _stay_paused(self) -> None:
        """Wait without a slot until the stream is resumed, or the run ends."""
        self._reporter.enter(StreamState.PAUSED)
        self._place.rest()
        while self.spec.paused and not self._stopping():
            self._clock.sleep(NAP)
        self._take_slot()

    def _take_slot(self) -> None:
        """Go on in a slot after a rest, as soon as one is free; return without one if the run ends
        or the stream is paused meanwhile."""
        report_at = self._clock.monotonic() + _SLOT_PATIENCE
        while not self._place.resume():
            if self._stopping() or self.spec.paused:
                return
            if self._clock.monotonic() >= report_at:
                self._reporter.enter(StreamState.RECONNECTING, _NO_SLOT)
            self._clock.sleep(NAP)

    def _stopping(self) -> bool:
        """Return whether to end the run; checks the registry now and then."""
        if self._stop():
            return True
        if self.follower.due:
            self._look()
        return self.follower.detached or self.follower.lost

    def _leaving(self) -> bool:
        """Return whether to leave the source, or to end a wait."""
        return self._stopping()

    def _look(self, *, fresh: bool = False) -> None:
        """Follow an edited spec, and report how the stream is."""
        before = self.spec
        if self.follower.look(fresh=fresh):
            self._follow(before, self.spec)
        self.source_counter.update()
        self._reporter.tick()

    def _follow(self, before: StreamSpec, now: StreamSpec) -> None:
        """Continue with an edited spec."""
        self._reporter.name = now.name
        self.intake.follow(now)
        self._in_order(lambda: self.watches.follow(now))

    def _in_order(self, step: Callable[[], None]) -> None:
        """Run a step after the frames that came before it."""
        step()

    def _wait(self, seconds: float) -> None:
        """Sleep, but no longer than until there is something else to do."""
        until = self._clock.monotonic() + seconds
        while not self._leaving() and (left := until - self._clock.monotonic()) > 0:
            self._clock.sleep(min(NAP, left))
