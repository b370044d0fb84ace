"""Run a recording in an ingest slot: read it once, as fast as its clips are answered."""

from collections.abc import Callable
from typing import TypeVar

import redis

from streamer.clock import Clock
from streamer.domain.frame import FrameRef
from streamer.domain.stream import StreamSpec, StreamState
from streamer.errors import StreamerError, Superseded
from streamer.frames.sampled_frame import SampledFrame
from streamer.media.source import DecodedFrame, Source
from streamer.media.source_errors import ended_early
from streamer.redis_client.errors import will_pass
from streamer.redis_client.outage import Outage
from workers.context import GiveBack, WorkerContext
from workers.ingest.clips import RecordingClips, max_clips_in_flight
from workers.ingest.failures import unexpected
from workers.ingest.frame_batch import FrameBatch
from workers.ingest.source_counter import SourceCounter
from workers.ingest.stream_run import NAP, StreamRun
from workers.ingest.stream_watches import StreamWatches, resume_from

_T = TypeVar("_T")

_MIN_MISSING = 1.0
"""Seconds, at least, that are missing at the end of a recording that ended early: containers round,
and sound may outlast the picture."""

_MISSING_SHARE = 0.02
"""The same as a share of its length, which some containers only estimate."""


class RecordingRun(StreamRun):
    """Reads a recording from where an earlier worker left it to its end.

    Nothing of it is dropped: it waits for its clips to be answered, and for Redis to return.
    """

    def __init__(
        self,
        context: WorkerContext,
        spec: StreamSpec,
        *,
        stop: Callable[[], bool],
        clock: Clock | None = None,
    ) -> None:
        super().__init__(context, spec, stop=stop, clock=clock)
        self.source_counter = SourceCounter(self.counters)
        self.clips = RecordingClips(
            context.jobs,
            context.windows,
            self.counters,
            room=lambda: max_clips_in_flight(self.spec, context.settings),
            wait=self._wait_for_answers,
            insist=self._insist,
            token=self.token,
        )
        self.watches = StreamWatches(spec, self.clips.submit)
        self._batch = FrameBatch(self._clock)
        self._resumed_at: float | None = None  # stream time that an earlier worker reached
        self._position: float | None = None  # stream time of the newest frame

    def _run(self) -> None:
        if self._reporter.status.state is StreamState.ENDED:
            return
        self._claim()
        if self.spec.paused:
            self._stay_paused()
        self._reporter.enter(StreamState.CONNECTING)
        failure: StreamerError | None = None
        try:
            reached = self._resume()
            with self._insist(lambda: self._open(reached)) as source:
                self._consume(source)
        except (GiveBack, Superseded, redis.exceptions.RedisError):
            raise
        except StreamerError as error:
            failure = StreamerError(error.code, error.message)  # without what the traceback holds
        except Exception as error:
            failure = unexpected(error, self.spec.name)
        self.source_counter.close()
        if self._stopping():
            raise GiveBack
        if self._position is not None:
            length = self.counters.duration or 0.0
            missing = None if failure is not None else self._missing(self._position, length)
            if missing is not None:
                self._warn(missing)
                self.clips.warning = missing.message
            whole = failure is None and missing is None
            self.watches.finish(max(length, self._position) if whole else self._position)
        state = StreamState.ENDED if failure is None else StreamState.FAILED
        self.counters.clips = max(self.counters.clips, self._insist(self._count_windows))
        self._reporter.enter(state, failure)
        if not self._reporter.saved:
            self._insist(self._reporter.insist)  # clients that wait for the end read it there

    def _count_windows(self) -> int:
        return self._context.windows.count(self.spec.id)

    def _missing(self, position: float, length: float) -> StreamerError | None:
        """Return the warning that a recording ended long before its announced `length`; its last
        frame is at `position`. Both in seconds."""
        reached = position + 1 / (self.counters.fps or 25.0)
        if length - reached <= max(_MIN_MISSING, _MISSING_SHARE * length):
            return None
        return ended_early(self.spec.url, reached, length)

    def _resume(self) -> float:
        """Continue where an earlier worker stopped. Return the stream time to read from."""
        known = self._insist(lambda: self._context.windows.all(self.spec.id))
        self.clips.submitted |= known.keys()
        self.counters.clips = max(self.counters.clips, len(known))  # they are saved now and then
        frames = self._insist(self._stored)
        if not frames:
            return 0.0
        self._resumed_at = reached = frames[-1].pts
        self.clips.resumed = True
        self.watches.resume(frames)
        self.intake.sampler.resume(reached)
        return reached

    def _stored(self) -> list[FrameRef]:
        """Return the stored frames of the windows that may still have to be asked about."""
        newest = self.intake.store.newest(self.spec.id)
        if not newest:
            return []
        reached = newest[-1].pts
        since = min((resume_from(w, reached) for w in self.spec.watches), default=reached)
        origin = self.spec.created_at.timestamp()
        return self.intake.store.between(self.spec.id, origin + since, newest[-1].time + 1)

    def _consume(self, source: Source) -> None:
        self._count(source)
        try:
            for frame in source:
                self._reporter.enter(StreamState.RUNNING)
                self._take(frame)
                if self.intake.scaled and not self._reporter.status.warnings:
                    self._warn()
                if self.spec.paused:  # its file may stay open meanwhile
                    self._store_batch()
                    self._stay_paused()
                    self._reporter.enter(StreamState.RUNNING)
        except StreamerError:
            self._store_batch()  # what came before the damage
            raise
        else:
            if not self._stopping():
                self._store_batch()
        finally:
            self._batch.take()  # another worker continues after the last stored frame

    def _take(self, frame: DecodedFrame) -> None:
        """Sample a frame, and store those that wait once they are enough."""
        self._position = self.counters.position = frame.pts
        self._reporter.last_frame = self._clock.time()
        if self._resumed_at is not None and frame.pts <= self._resumed_at:
            return
        if self.intake.keeps(frame.pts, frame.image):
            if not self._batch.fits(frame.pts, (watch.window for watch in self.spec.watches)):
                self._store_batch()
            self._batch.add(frame)
        if self._batch.due:
            self._store_batch()

    def _store_batch(self) -> None:
        """Store the frames that wait, and ask about the windows that they complete."""
        sampled: list[SampledFrame] = []
        failure: StreamerError | None = None
        try:
            for frame in self.intake.encode(self._batch.take()):
                sampled.append(frame)
        except StreamerError as error:
            failure = error  # raised once the frames before it are stored
        if sampled:
            outage = self._context.connections.frames_outage
            for ref in self._insist(lambda: self.intake.put(sampled), outage):
                self.watches.add(ref, quiet=0.0)  # its last window ends where the recording does
                self.counters.sampled += 1
        if failure is not None:
            raise failure

    def _in_order(self, step: Callable[[], None]) -> None:
        self._store_batch()
        step()

    def _wait_for_answers(self) -> None:
        """Wait a moment for clips to be answered. Raises GiveBack when the run ends meanwhile."""
        if self.spec.paused:
            self._stay_paused()
            self._reporter.enter(StreamState.RUNNING)
        self._wait(NAP)
        if self._stopping():
            raise GiveBack

    def _insist(self, call: Callable[[], _T], outage: Outage | None = None) -> _T:
        """Return `call()`, repeated while Redis refuses it. Raises GiveBack when the run ends
        meanwhile."""

        def wait(seconds: float) -> bool:
            self._wait(seconds)
            return self._stopping()

        try:
            return (outage or self._context.connections.outage).insist("recordings", call, wait)
        except redis.exceptions.RedisError as error:
            if will_pass(error):
                raise GiveBack from None
            raise
