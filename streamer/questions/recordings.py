"""Follow a recording until every window that was asked about has its result."""

from collections.abc import Mapping

from streamer.clock import Clock, SystemClock
from streamer.domain.error_info import ErrorInfo
from streamer.domain.result import Result
from streamer.domain.stream import Stream, StreamState, StreamStatus
from streamer.errors import ErrorCode, StreamerError
from streamer.queues.jobs import Jobs
from streamer.queues.recorded_windows import RecordedWindow, RecordedWindows
from streamer.queues.results import Results
from streamer.sources.streams import StreamRegistry

_BETWEEN_CHECKS = 1.0
"""Seconds between two looks for results that did not come by the results queue."""

_FORGOTTEN = ErrorInfo(
    code=ErrorCode.JOB_LOST,
    message="Redis has neither an answer for this window nor a job that will give one: analyze "
    "the recording again.",
)


class RecordingResults:
    """Results of one recording as they arrive; call `advance` until `finished`.

    The windows that were asked about are recorded with their requests, so completion depends
    neither on the counters of an ingest worker, which may die, nor on the results queue, which is
    trimmed: what does not come by the queue is looked up.

    Args:
        last_id: where to start in the results queue; earlier results are looked up.

    Attributes:
        stream: the recording.
        status: its status, as last read.
        results: all results so far, in order of arrival; one for each window.
    """

    def __init__(
        self,
        registry: StreamRegistry,
        jobs: Jobs,
        queue: Results,
        windows: RecordedWindows,
        stream: Stream,
        last_id: str,
        clock: Clock | None = None,
    ) -> None:
        self._registry = registry
        self._jobs = jobs
        self._queue = queue
        self._windows = windows
        self._last_id = last_id
        self._clock = clock or SystemClock()
        self._checked_at = float("-inf")
        self._due: Mapping[str, RecordedWindow] | None = None  # once the recording is over
        self._idle = False  # nothing is in flight
        self._by_request: dict[str, Result] = {}
        self.stream = stream
        self.status: StreamStatus = stream
        self.finished = False
        """Whether the recording has ended and each of its windows has a result."""

    @property
    def results(self) -> list[Result]:
        """All results so far, in order of arrival."""
        return list(self._by_request.values())

    @property
    def over(self) -> bool:
        """Whether no more windows will be asked about."""
        return self.status.state in (StreamState.ENDED, StreamState.FAILED)

    def advance(self, block: float) -> list[Result]:
        """Wait up to `block` seconds and return the new results in order of arrival.

        Raises StreamerError(UNKNOWN_STREAM) if the recording was detached before it was finished.
        """
        # The status first: every window was recorded before the recording was over.
        self.status = self._registry.status(self.stream.id)
        idle = self._idle
        entries = self._queue.read(self._last_id, block)
        fresh = []
        for entry_id, result in entries:
            self._last_id = entry_id
            if result.stream_id == self.stream.id:
                fresh += self._add(result)
        if self.over:
            self._due = self._windows.all(self.stream.id) if self._due is None else self._due
            if not self._answered and self._check_is_due():
                fresh += self._check(self._due)
            # Windows that an ingest worker of an earlier release submitted are counted only.
            counted = len(self._by_request) >= self.status.counters.clips
            self.finished = self._answered and (counted or (idle and not entries))
            if self._answered and not counted:
                self._idle = not self._jobs.in_flight(self.stream.id)
        else:
            self._due = None
        if not self.finished and not self._registry.exists(self.stream.id):
            raise StreamerError(
                ErrorCode.UNKNOWN_STREAM,
                f"'{self.stream.name}' was detached during the analysis: run it again.",
            )
        return fresh

    def trouble(self) -> StreamerError | None:
        """Return the reason why windows have no caption, or None if every window has one."""
        error = self.status.error
        if self.status.state is StreamState.FAILED:
            message = error.message if error else "The recording could not be read to its end."
            return StreamerError(error.code if error else ErrorCode.INTERNAL, message)
        found = sorted(self._by_request.values(), key=media_start)
        failed = [result.error for result in found if result.error is not None]
        if failed:
            return StreamerError(
                failed[0].code,
                f"{len(failed)} of {len(found)} windows have no caption. First error: "
                f"{failed[0].message}",
            )
        lost = self.status.counters.clips - len(found)
        if lost > 0:
            return StreamerError(
                ErrorCode.JOB_LOST,
                f"{lost} of {self.status.counters.clips} windows have no result, because Redis "
                "lost them: analyze the recording again.",
            )
        if self.status.warnings:
            warning = self.status.warnings[0]
            return StreamerError(warning.code, warning.message)
        if not found:
            return StreamerError(
                ErrorCode.NO_FRAMES, "No frame was sampled from the recording: raise --fps."
            )
        return None

    @property
    def _answered(self) -> bool:
        return self._due is not None and self._due.keys() <= self._by_request.keys()

    def _add(self, result: Result) -> list[Result]:
        if result.request_id in self._by_request:
            return []
        self._by_request[result.request_id] = result
        return [result]

    def _check_is_due(self) -> bool:
        return self._clock.monotonic() - self._checked_at >= _BETWEEN_CHECKS

    def _check(self, due: Mapping[str, RecordedWindow]) -> list[Result]:
        """Return the results that did not come by the results queue, and those of windows that will
        never have one: these become errors."""
        self._checked_at = self._clock.monotonic()
        # First the requests whose jobs Redis lost get their error results.
        idle = not self._jobs.in_flight(self.stream.id)
        fresh = []
        missing = [request_id for request_id in due if request_id not in self._by_request]
        for request_id, result in zip(missing, self._queue.get_many(missing), strict=True):
            if result is not None:
                fresh += self._add(result)
            elif idle and not self._jobs.exists(request_id):
                window = due[request_id]
                fresh += self._add(window.failed(request_id, self.stream, _FORGOTTEN))
        return fresh


def media_start(result: Result) -> float:
    """Return where the window of a result begins in its recording, seconds."""
    return float((result.data or {}).get("media_start", 0.0))
