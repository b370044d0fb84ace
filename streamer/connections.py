"""Find, open and close connections to Redis."""

import contextlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.retry import Retry

from streamer.errors import ErrorCode, StreamerError
from streamer.settings import Settings

CONNECT_TIMEOUT = 5.0
SOCKET_TIMEOUT = 30.0
"""Seconds: longer than any blocking command, short enough to notice a server that went silent."""

MIN_FRAME_MEMORY = 4 << 20

REDIS_FULL_MESSAGE = (
    "Redis is full: wait until jobs finish and answers expire, or raise its maxmemory."
)

ASSUMED_MEMORY = 4 << 30
"""Bytes of memory assumed for a server that reports none."""

NOTHING_RUNNING = "Nothing is running here: start `streamer up`, or set STREAMER_REDIS_URL."


def connect(url: str) -> redis.Redis:
    """Connect to the server at `url`, ping it, and return a thread-safe client that gives bytes.

    The client restores a broken connection and sends the command again, a few times with growing
    pauses: commands must tolerate being executed twice.

    Raises StreamerError(REDIS_UNAVAILABLE) if the server does not answer or refuses the login.
    """
    from streamer.media.urls import redact

    try:
        client: redis.Redis = redis.Redis.from_url(
            url,
            decode_responses=False,
            protocol=2,
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=SOCKET_TIMEOUT,
            socket_keepalive=True,
            health_check_interval=15,
            retry=Retry(ExponentialWithJitterBackoff(base=0.02, cap=1.0), retries=3),
        )
    except ValueError:
        raise StreamerError(
            ErrorCode.REDIS_UNAVAILABLE,
            f"'{redact(url)}' is not a Redis address: write redis://host:6379/0.",
        ) from None
    try:
        client.ping()
    except redis.exceptions.AuthenticationError:
        client.close()
        raise StreamerError(
            ErrorCode.REDIS_UNAVAILABLE,
            f"Redis at {redact(url)} refused the password: check STREAMER_REDIS_URL.",
        ) from None
    except (redis.exceptions.RedisError, OSError) as error:
        client.close()
        reason = redact(str(error)).rstrip(".") or type(error).__name__
        raise StreamerError(
            ErrorCode.REDIS_UNAVAILABLE,
            f"Redis at {redact(url)} does not answer ({reason}): "
            "check that it is running and that STREAMER_REDIS_URL is correct.",
        ) from None
    return client


def is_full(error: BaseException) -> bool:
    """Return whether a command failed because the server has reached its `maxmemory`."""
    # Before Redis 7, a script reports it inside another error.
    return isinstance(error, redis.exceptions.OutOfMemoryError) or (
        isinstance(error, redis.exceptions.ResponseError) and "OOM command" in str(error)
    )


def run_file_path(settings: Settings) -> Path:
    """Return the file in which `streamer up` stores the addresses of its servers (mode 0600)."""
    return settings.data_dir / "run.json"


def read_run_file(settings: Settings) -> dict[str, Any]:
    """Read the addresses of this machine's installation. Raises StreamerError if none runs."""
    with contextlib.suppress(OSError, ValueError):
        run = json.loads(run_file_path(settings).read_text())
        if isinstance(run, dict) and isinstance(run.get("redis_url"), str):
            return run
    raise StreamerError(ErrorCode.REDIS_UNAVAILABLE, NOTHING_RUNNING)


def from_run_file(settings: Settings, key: str) -> str | None:
    """Return an entry of the run file; None if `settings` name their own Redis, or it is empty."""
    if settings.redis_url is not None:
        return None
    value = read_run_file(settings).get(key)
    return value if isinstance(value, str) else None


class Connections:
    """The Redis clients that a process shares among its threads.

    `main` holds jobs, results and streams. `frames` holds the frames: the same server, unless the
    settings name another. Without `settings.redis_url`, both addresses come from the run file of a
    local installation.

    Raises StreamerError(REDIS_UNAVAILABLE).
    """

    def __init__(self, settings: Settings) -> None:
        self._frames_memory = settings.frames_memory
        url, frames_url = settings.redis_url, settings.frames_redis_url
        from_run_file = url is None
        if url is None:
            run = read_run_file(settings)
            url, frames_url = run["redis_url"], frames_url or run.get("frames_redis_url")
        try:
            self.main = connect(url)
        except StreamerError:
            if from_run_file:  # the file is older than a crash
                raise StreamerError(ErrorCode.REDIS_UNAVAILABLE, NOTHING_RUNNING) from None
            raise
        try:
            self.frames = connect(frames_url) if frames_url else self.main
        except StreamerError:
            self.main.close()
            raise

    @cached_property
    def frame_memory(self) -> int:
        """Bytes that all frames together may take.

        The setting `frames_memory`. Without it, three quarters of the frame server's `maxmemory`,
        or half if the server also holds jobs and results. A server without `maxmemory` counts as
        a quarter of its machine's memory. Read once; raises redis.exceptions.RedisError.
        """
        if self._frames_memory is not None:
            return self._frames_memory
        memory = self.frames.info("memory")
        bound = (
            int(memory.get("maxmemory") or 0) or int(memory.get("total_system_memory") or 0) // 4
        )
        share = 0.5 if self.shared else 0.75
        return max(MIN_FRAME_MEMORY, int(share * (bound or ASSUMED_MEMORY)))

    @property
    def shared(self) -> bool:
        """Whether one server holds frames, jobs and results."""
        if self.frames is self.main:
            return True
        runs = [c.info("server").get("run_id") for c in (self.main, self.frames)]
        return runs[0] == runs[1]

    def memory_advice(self) -> str | None:
        """Return advice if a server may evict jobs, or grow without bound; None if not.

        Raises redis.exceptions.RedisError.
        """
        memory = self.main.info("memory")
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        if int(memory.get("maxmemory") or 0) and policy != "noeviction":
            return (
                f"When Redis is full, it may evict jobs and results (policy {policy}): set its "
                "maxmemory-policy to noeviction. The service itself bounds the frames."
            )
        if not int(self.frames.info("memory").get("maxmemory") or 0):
            return (
                "Redis has no maxmemory, so frames may take a quarter of its machine's memory: "
                "set its maxmemory, or the setting frames_memory."
            )
        return None

    def close(self) -> None:
        """Close all connections. The object cannot be used afterwards."""
        self.main.close()
        self.frames.close()

    def __enter__(self) -> "Connections":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
