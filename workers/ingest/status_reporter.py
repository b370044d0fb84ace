"""Report the status of a stream: at once when its state changes, otherwise once a second."""

from collections.abc import Callable

import redis
import structlog

from streamer.clock import Clock
from streamer.domain.error_info import ErrorInfo
from streamer.domain.stream import StreamCounters, StreamState, StreamStatus
from streamer.domain.timestamp import to_datetime
from streamer.errors import StreamerError
from streamer.redis_client.outage import Outage
from workers.registry_batch import RegistryBatch

_INTERVAL = 1.0
"""Seconds between two saves of an unchanged state."""

_log = structlog.get_logger(__name__)


class StatusReporter:
    """Keeps the status of one stream, and saves it in the registry.

    While Redis is away the status is kept, and saved when Redis is back. Each save shows the
    `token` of the worker that runs the stream, and raises Superseded when another one does.

    Attributes:
        name: the stream's name, for the log.
        status: the status, continued from the stream's last worker.
        saved: whether the registry has it as it was when it was last saved.
        last_frame: when the newest frame was captured, seconds since the Unix epoch; it goes into
            the status when that is saved. None: as an earlier worker left it.
    """

    def __init__(
        self,
        registry: RegistryBatch,
        status: StreamStatus,
        stream_id: str,
        name: str,
        worker: str | None,
        clock: Clock,
        outage: Outage,
        token: int | None = None,
    ) -> None:
        self._registry = registry
        self._stream_id = stream_id
        self.name = name
        self._clock = clock
        self._outage = outage
        self._token = token
        self._saved_at = float("-inf")
        self.saved = True
        self.last_frame: float | None = None
        self.status = status
        self.status.worker = worker

    @property
    def counters(self) -> StreamCounters:
        """The stream's counters, to be updated in place."""
        return self.status.counters

    def enter(self, state: StreamState, error: StreamerError | None = None) -> None:
        """Set the stream's state and error; `since` changes when the state does."""
        info = ErrorInfo(code=error.code, message=error.message) if error is not None else None
        if (state, info) == (self.status.state, self.status.error):
            return
        if state is not self.status.state:
            self.status.since = to_datetime(self._clock.time())
        self.status.state, self.status.error = state, info
        if error is None:
            _log.info("stream_state", stream=self.name, state=state.value)
        else:
            _log.warning(
                "stream_state",
                stream=self.name,
                state=state.value,
                code=error.code.value,
                reason=error.message,
            )
        self.save()

    def warn(self, *warnings: StreamerError) -> None:
        """Replace the warnings about the stream; log those that are new."""
        infos = [ErrorInfo(code=warning.code, message=warning.message) for warning in warnings]
        for info in infos:
            if info not in self.status.warnings:
                _log.warning(
                    "stream_warning", stream=self.name, code=info.code.value, reason=info.message
                )
        if infos != self.status.warnings:
            self.status.warnings = infos
            self.save()

    def tick(self) -> None:
        """Save the status if a second has passed, together with those of other streams; call it
        often. Raises Superseded."""
        if self._clock.monotonic() - self._saved_at >= _INTERVAL:
            self._stamp()
            self._try(lambda: self._registry.post(self._stream_id, self.status, self._token))

    def save(self) -> None:
        """Save the status now, if Redis takes it."""
        self._try(self.insist)

    def insist(self) -> None:
        """Save the status now. Raises Superseded, redis.exceptions.RedisError."""
        self.saved = False
        self._stamp()
        self._registry.save(self._stream_id, self.status, self._token)
        self.saved = True

    def _stamp(self) -> None:
        self._saved_at = self._clock.monotonic()
        self.status.reported_at = to_datetime(self._clock.time())
        if self.last_frame is not None:
            self.status.last_frame_at = to_datetime(self.last_frame)

    def _try(self, save: Callable[[], None]) -> None:
        try:
            save()
        except redis.exceptions.RedisError as error:
            self._outage.failed("status", error)
        else:
            self._outage.worked("status")
