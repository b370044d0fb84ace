"""Follow a recording through the service until every window has a result."""

from collections.abc import Callable

from streamer.client import Client
from streamer.clock import Clock, SystemClock
from streamer.domain import Result, Stream, StreamState, StreamStatus
from streamer.errors import ErrorCode, StreamerError

PATIENCE = 60.0
"""Seconds to wait for an ingest slot that nothing will free by itself."""

_BETWEEN_LOOKS = 1.0
"""Seconds between two looks at what the recording waits for."""

_RUNNING = (StreamState.CONNECTING, StreamState.RUNNING, StreamState.RECONNECTING)


class Analysis:
    """Results of one recording as they arrive; call `advance` until `finished`."""

    def __init__(
        self,
        client: Client,
        stream: Stream,
        last_id: str,
        *,
        say: Callable[[str], None] = lambda _: None,
        clock: Clock | None = None,
    ) -> None:
        """Start after `last_id`, the end of the results queue before the recording was attached.

        `say` receives what the recording waits for, as a sentence, whenever that changes.
        """
        self._say = say
        self._clock = clock or SystemClock()
        self._looked_at = float("-inf")
        self._stuck_since: float | None = None
        self._said: str | None = None
        self.stream = stream
        self.status: StreamStatus = stream
        self.results: list[Result] = []
        self._client = client
        self._last_id = last_id
        self._printed = 0

    def advance(self, block: float) -> list[Result]:
        """Wait up to `block` seconds and return the new results in order of arrival.

        Raises StreamerError: UNKNOWN_STREAM if the recording was detached meanwhile; NO_WORKER if
        no worker can read it, and none will without help.
        """
        self._look()
        # Read the status first: `finished` compares its count of clips with results read after it.
        self.status = self._client.registry.status(self.stream.id)
        fresh = []
        for entry_id, result in self._client.queue.read(self._last_id, block):
            self._last_id = entry_id
            if result.stream_id == self.stream.id:
                fresh.append(result)
        self.results += fresh
        if not self.finished and not self._client.registry.exists(self.stream.id):
            raise StreamerError(
                ErrorCode.UNKNOWN_STREAM,
                f"'{self.stream.name}' was detached during the analysis: run it again.",
            )
        return fresh

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
        if not jobs.waits_for_slot(self.stream.id):
            if jobs.workers()["clips"] or self.finished:
                return None, True
            return (
                "No model worker is running to answer: start one with `streamer worker`; it "
                "continues then.",
                True,
            )
        slots = jobs.ingest_slots()
        if not slots:
            return "No ingest worker is running: start one with `streamer ingest`.", False
        others = [
            stream
            for stream in self._client.streams()
            if stream.id != self.stream.id
            and stream.state in _RUNNING
            and not jobs.waits_for_slot(stream.id)
        ]
        if len(others) < slots:  # a slot is free: a worker is about to take the recording
            return None, True
        live = sum(stream.live for stream in others)
        return (
            f"{_counted(len(others), 'stream')} ({live} live) "
            f"{'takes' if len(others) == 1 else 'take'} all {_counted(slots, 'ingest slot')}, so "
            "this recording waits: detach a stream, start another `streamer ingest`, or raise the "
            "setting ingest_slots.",
            live < len(others),
        )

    @property
    def finished(self) -> bool:
        """Whether the recording has ended and each of its clips has a result."""
        over = self.status.state in (StreamState.ENDED, StreamState.FAILED)
        return over and len(self.results) >= self.status.counters.clips

    @property
    def duration(self) -> float | None:
        """Length in seconds, if the container declares one."""
        return self.status.counters.duration

    @property
    def done_seconds(self) -> float:
        """Seconds of the recording that have results."""
        return sum(_end(result) - _start(result) for result in self.results)

    @property
    def timeline(self) -> list[Result]:
        """All results so far, sorted by their start in the recording."""
        return sorted(self.results, key=_start)

    def in_order(self) -> list[Result]:
        """Return new results in order of the recording, as soon as no earlier window is missing."""
        timeline = self.timeline
        ready = len(timeline)
        if not self.finished:
            reached = 0.0
            for ready, result in enumerate(timeline):  # noqa: B007
                if _start(result) > reached + 1e-6:
                    break
                reached = _end(result)
            else:
                ready = len(timeline)
        fresh = timeline[self._printed : ready]
        self._printed = max(self._printed, ready)
        return fresh

    def trouble(self) -> StreamerError | None:
        """Return the reason why windows have no caption, or None if every window has one."""
        error = self.status.error
        if self.status.state is StreamState.FAILED:
            message = error.message if error else "The recording could not be read to its end."
            return StreamerError(error.code if error else ErrorCode.INTERNAL, message)
        failed = [result.error for result in self.timeline if result.error is not None]
        if failed:
            return StreamerError(
                failed[0].code,
                f"{len(failed)} of {len(self.results)} windows have no caption. First error: "
                f"{failed[0].message}",
            )
        if self.status.warnings:
            warning = self.status.warnings[0]
            return StreamerError(warning.code, warning.message)
        if not self.results:
            return StreamerError(
                ErrorCode.NO_FRAMES, "No frame was sampled from the recording: raise --fps."
            )
        return None


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _start(result: Result) -> float:
    return float((result.data or {}).get("media_start", 0.0))


def _end(result: Result) -> float:
    return float((result.data or {}).get("media_end", _start(result)))
