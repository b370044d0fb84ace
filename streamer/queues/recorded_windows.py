"""Which windows of a recording have been asked about: the record that completion is decided from.

A counter that a worker keeps is out of date when the worker dies. This record is written in the
transaction that submits a request, so it has each request that was ever accepted, and no other.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import redis

from streamer import redis_keys
from streamer.domain.error_info import ErrorInfo
from streamer.domain.kinds import ResultKind
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.stream import Stream

_TTL = 7 * 86400
"""Seconds after the last request for which the windows of a recording are known."""


@dataclass(frozen=True, slots=True)
class RecordedWindow:
    """A window of a recording that a watch asked about.

    Attributes:
        start, end: place in the recording, seconds.
        watch_id: the watch.
    """

    start: float
    end: float
    watch_id: str

    @property
    def data(self) -> dict[str, Any]:
        """The place as results carry it."""
        return {"media_start": self.start, "media_end": self.end}

    def failed(self, request_id: str, recording: Stream, error: ErrorInfo) -> Result:
        """Return the error result of a request about this window of `recording`."""
        prompts = {watch.id: watch.prompt for watch in recording.watches}
        return Result(
            request_id=request_id,
            kind=ResultKind.ERROR,
            stream_id=recording.id,
            stream_name=recording.name,
            watch_id=self.watch_id,
            prompt=prompts.get(self.watch_id, ""),
            start=recording.created_at + timedelta(seconds=self.start),
            end=recording.created_at + timedelta(seconds=self.end),
            data=self.data,
            error=error,
        )


class RecordedWindows:
    """The windows of all recordings, by the ids of their requests."""

    def __init__(self, redis: redis.Redis) -> None:
        self._redis = redis

    def note(self, request: ClipRequest, client: redis.Redis | None = None) -> None:
        """Record the window of a request about a recording; `client` may be a pipeline."""
        client = client if client is not None else self._redis
        key, data = redis_keys.recorded_windows(request.stream_id), request.data or {}
        place = f"{data.get('media_start', 0.0)} {data.get('media_end', 0.0)} {request.watch_id}"
        client.execute_command("HSET", key, request.id, place)
        client.execute_command("EXPIRE", key, _TTL)

    def all(self, stream_id: str) -> dict[str, RecordedWindow]:
        """Return the windows of a recording by the ids of their requests."""
        key = redis_keys.recorded_windows(stream_id)
        raw = cast("dict[bytes, bytes]", self._redis.hgetall(key))
        return {request_id.decode(): _parse(place) for request_id, place in raw.items()}

    def get(self, stream_id: str, request_id: str) -> RecordedWindow | None:
        """Return the window of a request; None if it is not recorded."""
        key = redis_keys.recorded_windows(stream_id)
        raw = cast("bytes | None", self._redis.hget(key, request_id))
        return _parse(raw) if raw is not None else None

    def count(self, stream_id: str) -> int:
        """Return how many windows of a recording have been asked about."""
        return self._redis.hlen(redis_keys.recorded_windows(stream_id))

    def forget(self, stream_id: str) -> None:
        """Forget the windows of a recording that was detached."""
        self._redis.delete(redis_keys.recorded_windows(stream_id))


def _parse(place: bytes) -> RecordedWindow:
    start, end, watch_id = place.decode().split(" ", 2)
    return RecordedWindow(float(start), float(end), watch_id)
