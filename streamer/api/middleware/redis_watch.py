"""Log once that requests fail because of Redis, and once that Redis works again."""

import threading

import redis

from streamer.redis_client.access import require_writable
from streamer.redis_client.connections import Connections


class RedisWatch:
    """Tries a Redis that refused a request until it works again.

    Requests come from outside, so nothing else would notice the end of an outage.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def failed(self, error: redis.RedisError) -> None:
        """Note that a request failed; try Redis from now on."""
        self._connections.outage.failed("requests", error)
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="redis-watch", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop trying."""
        self._closed.set()
        if (thread := self._thread) is not None:
            thread.join()

    def _run(self) -> None:
        connections, outage = self._connections, self._connections.outage
        for pause in outage.pauses():
            if self._closed.wait(pause):
                return
            try:
                require_writable(connections.main, ("jobs",))
                require_writable(connections.frames, ("frames",))
            except redis.RedisError as error:
                outage.failed("requests", error)
            else:
                with self._lock:
                    self._thread = None
                outage.worked("requests")
                return
