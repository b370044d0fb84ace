"""Report that this model worker is loading its model, so that users wait instead of giving up."""

import contextlib
import math
import socket
import threading

import redis

from streamer import redis_keys


class Loading:
    """Context manager that reports in a thread, three times in each lease, that a model loads.

    An error of Redis only delays the report: loading continues.

    Args:
        redis: client of the server that holds the jobs.
        lease: seconds after which a silent worker is given up.
    """

    def __init__(self, redis: redis.Redis, lease: float) -> None:
        self._redis = redis
        self._lease = lease
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loading", daemon=True)

    def __enter__(self) -> "Loading":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """Stop reporting; a second call does nothing."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join(timeout=1.0)
        with contextlib.suppress(redis.exceptions.RedisError):
            # Another worker that loads reports again within a third of a lease.
            self._redis.delete(redis_keys.LOADING)

    def _run(self) -> None:
        name, lease = socket.gethostname(), math.ceil(self._lease)
        while True:
            with contextlib.suppress(redis.exceptions.RedisError):
                self._redis.set(redis_keys.LOADING, name, ex=lease)
            if self._ended.wait(self._lease / 3):
                return
