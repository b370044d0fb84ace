"""Find cameras whose address has changed, and give their streams the new one."""

import math
import threading
from typing import Any

import redis
import structlog

from streamer import redis_keys
from streamer.clock import Clock
from streamer.domain.stream import Stream, StreamSpec
from streamer.errors import ErrorCode, StreamerError
from streamer.media.urls import split_secret, with_host
from streamer.redis_client.errors import trouble_of
from streamer.sources.discovery import find_moved, lost_cameras
from streamer.sources.streams import StreamRegistry

_INTERVAL = 60
"""Seconds between two searches in an installation."""

_GRACE = 5.0
"""Seconds to wait for a search at the end."""

_log = structlog.get_logger(__name__)


class _EditedError(Exception):
    """A user has changed the URL of the stream meanwhile."""


class MovedCameras:
    """Searches for the cameras of streams that have been lost for a while.

    Only cameras that were attached with their endpoint reference are known again, and only private
    networks are searched. Of all ingest workers one searches.

    Args:
        client: the Redis server of the registry.
        after: seconds for which a stream has to be lost; None: nothing is ever searched for.
    """

    def __init__(
        self, client: redis.Redis, registry: StreamRegistry, after: float | None, clock: Clock
    ) -> None:
        self._redis = client
        self._registry = registry
        self._after = after
        self._clock = clock
        self._looked_at = -math.inf
        self._thread: threading.Thread | None = None

    def sweep(self) -> None:
        """Search in a thread, if it is time. Call it often."""
        now = self._clock.monotonic()
        if self._after is None or now - self._looked_at < _INTERVAL:
            return
        self._looked_at = now
        lost = self._lost()
        if lost and self._redis.set(redis_keys.CAMERA_SEARCH, 1, nx=True, ex=_INTERVAL):
            self._thread = threading.Thread(
                target=self._search, args=(lost,), name="cameras", daemon=True
            )
            self._thread.start()

    def close(self) -> None:
        """Wait for a search to end."""
        if self._thread is not None:
            self._thread.join(_GRACE)

    def _lost(self) -> list[Stream]:
        before = self._clock.time() - (self._after or 0.0)
        return [
            stream
            for stream in lost_cameras(self._registry.list())
            if stream.live and stream.since.timestamp() <= before
        ]

    def _search(self, lost: list[Stream]) -> None:
        try:
            found = find_moved(lost)
            for stream in lost:
                if stream.name in found:
                    self._move(stream, found[stream.name])
        except StreamerError as error:
            if error.code is ErrorCode.SETTINGS_INVALID:  # the extra is not installed
                self._after = None
            _log.warning("cameras_not_searched_for", reason=error.message)
        except redis.exceptions.RedisError as error:
            _log.warning("cameras_not_searched_for", reason=trouble_of(error).message)

    def _move(self, stream: Stream, address: str) -> None:
        """Give a stream the address at which its camera was found, unless its URL was edited."""
        url, secret_url = split_secret(with_host(self._registry.secret_url(stream.id), address))

        def change(spec: StreamSpec) -> dict[str, Any]:
            if spec.url_version != stream.url_version or spec.paused:
                raise _EditedError
            return {"url": url}

        try:
            self._registry.edit(stream.id, change, secret_url=secret_url)
        except _EditedError:
            return
        _log.warning("camera_moved", stream=stream.name, url=url)
