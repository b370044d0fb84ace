"""Follow a recording through the service until every window has a result."""

from collections.abc import Callable

from streamer.clock import Clock, SystemClock
from streamer.domain.result import Result
from streamer.domain.stream import Stream, StreamState
from streamer.errors import ErrorCode, StreamerError
from streamer.questions.recordings import RecordingResults, media_start
from streamer.service import Service

PATIENCE = 60.0
"""Seconds to wait for an ingest slot that nothing will free by itself."""

_BETWEEN_LOOKS = 1.0
"""Seconds between two looks at what the recording waits for."""

_RUNNING = (StreamState.CONNECTING, StreamState.RUNNING)


class Analysis(RecordingResults):
    """Results of one recording, in its order; says what it waits for."""

    def __init__(
        self,
        client: Service,
        stream: Stream,
        last_id: str,
        *,
        say: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        """Start after `last_id`, the end of the results queue before the recording was attached.

        `say` receives what the recording waits for, as a sentence, whenever that changes.
        """
        clock = clock or SystemClock()
        super().__init__(
            client.registry, client.jobs, client.queue, client.windows, stream, last_id, clock
        )
        self._say = say
        self._looked_at = float("-inf")
        self._stuck_since: float | None = None
        self._said: str | None = None
        self._client = client
        self._printed = 0

    def advance(self, block: float) -> list[Result]:
        """Wait up to `block` seconds and return the new results in order of arrival.

        Raises StreamerError: UNKNOWN_STREAM if the recording was detached meanwhile; NO_WORKER if
        no worker can read it, and none will without help.
        """
        self._look()
        return super().advance(block)

    def _look(self) -> None:
        """Say what the recording waits for. Raises StreamerError(NO_WORKER) after PATIENCE."""
        now = self._clock.monotonic()
        if now - self._looked_at < _BETWEEN_LOOKS:
            return
        self._looked_at = now
        obstacle, passes = self._obstacle()
        if obstacle is not None and obstacle != self._said:
            self._say(obstacle)
        self._said = obstacle
        if obstacle is None or passes:
            self._stuck_since = None
            return
        self._stuck_since = now if self._stuck_since is None else self._stuck_since
        if now - self._stuck_since >= PATIENCE:
            raise StreamerError(ErrorCode.NO_WORKER, f"{obstacle} Waited {PATIENCE:.0f} s.")

    def _obstacle(self) -> tuple[str | None, bool]:
        """Return what the recording waits for, and whether that passes without help."""
        jobs = self._client.jobs
        if self.finished:
            return None, True
        slots, busy = jobs.ingest_slots()
        if not slots and not self.over:  # none has begun, or the one that read it died
            return "No ingest worker is running: start one with `streamer ingest`.", False
        if not jobs.waits_for_slot(self.stream.id):
            if jobs.workers()["clips"]:
                return None, True
            if jobs.model_loading():
                return "The model is loading: results begin when it is ready.", True
            return (
                "No model worker is running to answer: start one with `streamer worker`; it "
                "continues then.",
                True,
            )
        if busy < slots:  # a worker is about to take the recording
            return None, True
        running = [
            stream
            for stream in self._client.streams()
            if stream.live and stream.state in _RUNNING and not jobs.waits_for_slot(stream.id)
        ]
        live = min(busy, len(running))
        return (
            f"{_counted(busy, 'stream')} ({live} live) {'takes' if busy == 1 else 'take'} all "
            f"{_counted(slots, 'ingest slot')}, so this recording waits: detach a stream, start "
            "another `streamer ingest`, or raise the setting ingest_slots.",
            live < busy,
        )

    @property
    def duration(self) -> float | None:
        """Length in seconds, if the container declares one."""
        return self.status.counters.duration

    @property
    def done_seconds(self) -> float:
        """Seconds of the recording that have results."""
        return sum(_end(result) - media_start(result) for result in self.results)

    @property
    def timeline(self) -> list[Result]:
        """All results so far, sorted by their start in the recording."""
        return sorted(self.results, key=media_start)

    def in_order(self) -> list[Result]:
        """Return new results in order of the recording, as soon as no earlier window is missing."""
        timeline = self.timeline
        ready = len(timeline)
        if not self.finished:
            reached = 0.0
            for ready, result in enumerate(timeline):  # noqa: B007
                if media_start(result) > reached + 1e-6:
                    break
                reached = _end(result)
            else:
                ready = len(timeline)
        fresh = timeline[self._printed : ready]
        self._printed = max(self._printed, ready)
        return fresh


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _end(result: Result) -> float:
    return float((result.data or {}).get("media_end", media_start(result)))
