"""Find, open and close connections to Redis."""

import json
import socket
import time
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
import structlog

from streamer.clock import Clock, ServerClock, SystemClock, share
from streamer.errors import ErrorCode, StreamerError
from streamer.redis_client.access import examine_server, read_info, require_usable
from streamer.redis_client.address import FORMS, SENTINEL_SCHEMES, open_redis
from streamer.redis_client.errors import RedisTrouble, trouble_of
from streamer.redis_client.outage import Outage
from streamer.settings import Settings

_CONNECT_TIMEOUT = 5.0
SOCKET_TIMEOUT = 30.0
"""Seconds: longer than any blocking command, short enough to notice a server that went silent."""

_FAILOVER_TIMEOUT = 10.0
"""Seconds instead of SOCKET_TIMEOUT behind Sentinel, where another server takes over."""

_IDLE_INTERVAL = 300.0
"""Seconds after which a long-lived program closes the connections that it does not use."""

FRAMES_TIMEOUT = 5.0
"""Seconds for a server of frames alone: cameras do not wait for it, and jobs ask it again."""

MIN_FRAME_MEMORY = 4 << 20

ASSUMED_MEMORY = 1 << 30
"""Bytes that are assumed for a server that reports no memory."""

NOTHING_RUNNING = "Nothing is running here: start `streamer up`, or set STREAMER_REDIS_URL."


def connect(
    url: str, outage: Outage | None = None, *, timeout: float = SOCKET_TIMEOUT, retries: int = 3
) -> redis.Redis:
    """Connect to the server at `url`, check that the service can run on it, and return a
    thread-safe client that gives bytes.

    The client waits up to `timeout` seconds for an answer. It restores a broken connection and
    sends the command again, up to `retries` times with growing pauses: commands must tolerate being
    executed twice.

    With an `outage`, wait while the server answers but refuses work, because it loads its data or
    has no connection left. A server that does not answer at all may be a wrong address.

    Raises StreamerError(REDIS_UNAVAILABLE) if the server does not answer, refuses the login, is too
    old or runs in cluster mode.
    """
    reach(url, outage)
    sentinel = urlsplit(url).scheme in SENTINEL_SCHEMES
    return open_redis(
        url,
        connect_timeout=_CONNECT_TIMEOUT,
        timeout=min(timeout, _FAILOVER_TIMEOUT) if sentinel else timeout,
        retries=retries,
    )


def reach(url: str, outage: Outage | None = None, timeout: float = _CONNECT_TIMEOUT) -> None:
    """Ask the server at `url` once what it is: see :func:`connect`. Waits `timeout` seconds at
    most, unless an `outage` lets it wait for a server that refuses work."""
    from streamer.media.urls import redact

    shown = redact(url.partition("?")[0])  # a parameter with a typing error may be a password
    try:
        client = open_redis(url, connect_timeout=timeout, timeout=timeout)
    except (ValueError, TypeError):
        raise StreamerError(
            ErrorCode.REDIS_UNAVAILABLE,
            f"'{shown}' is not a Redis address: write {FORMS}.",
        ) from None
    pauses = (outage or Outage()).pauses()
    with client:
        while True:
            try:
                client.ping()
                require_usable(client)
            except (redis.exceptions.RedisError, OSError) as error:
                trouble = trouble_of(error)
                if outage is not None and trouble.answered and trouble.passes:
                    outage.failed("connect", error)
                    time.sleep(next(pauses))
                    continue
                raise StreamerError(
                    ErrorCode.REDIS_UNAVAILABLE, _unreachable(shown, error, trouble)
                ) from None
            if outage is not None:
                outage.worked("connect")
            return


def _unreachable(shown: str, error: BaseException, trouble: RedisTrouble) -> str:
    from streamer.media.urls import redact

    if trouble.kind == "LOGIN":
        return f"Redis at {shown} refused the password: check STREAMER_REDIS_URL."
    if trouble.kind == "NOPRIMARY":
        return (
            f"The Sentinels at {shown} know no primary of that name, or do not answer: check the "
            "address and the state of the failover."
        )
    if trouble.answered:
        return f"Redis at {shown} refuses work. {trouble.message}"
    reason = redact(str(error)).rstrip(".") or type(error).__name__
    advice = "check that it is running and that STREAMER_REDIS_URL is correct"
    if shown.startswith("rediss") and "refused" not in reason:
        advice += ". If the server does not use TLS, write redis:// instead of rediss://"
    elif "closed by server" in reason or "reset by peer" in reason:
        advice += ". If the server uses TLS, write rediss:// instead of redis://"
    return f"Redis at {shown} does not answer ({reason}): {advice}."


def run_file_path(settings: Settings) -> Path:
    """Return the file in which `streamer up` stores the addresses of its servers (mode 0600)."""
    return settings.data_dir / "run.json"


def read_run_file(settings: Settings) -> dict[str, Any]:
    """Read the addresses of this machine's installation: `redis_url` and `frames_redis_url` are
    those of its Unix sockets where this program can reach them.

    Raises StreamerError if none runs, or why the file cannot be read.
    """
    path = run_file_path(settings)
    try:
        run = json.loads(path.read_bytes())
        if isinstance(run, dict) and isinstance(run.get("redis_url"), str):
            return _with_sockets(run)
        reason = "is damaged: free disk space if it is full, and restart `streamer up`"
    except (FileNotFoundError, NotADirectoryError):
        raise StreamerError(ErrorCode.REDIS_UNAVAILABLE, NOTHING_RUNNING) from None
    except PermissionError:
        reason = "is not readable for this user: use the account that started `streamer up`"
    except OSError as error:
        reason = f"cannot be read ({error.strerror}): check its disk"
    except ValueError:
        reason = "is damaged: free disk space if it is full, and restart `streamer up`"
    raise StreamerError(
        ErrorCode.REDIS_UNAVAILABLE, f"The file of the running installation, {path}, {reason}."
    )


def _with_sockets(run: dict[str, Any]) -> dict[str, Any]:
    """Return the run file with the sockets of its servers in place of their other addresses, but
    for a socket that cannot be reached: the data folder may be that of another container."""
    for name in ("redis_url", "frames_redis_url"):
        url = run.get(name.replace("redis_url", "redis_socket_url"))
        if isinstance(url, str) and _listens(url):
            run[name] = url
    return run


def _listens(url: str) -> bool:
    """Return whether anything accepts connections at the address of a server on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "unix":
        try:
            with socket.socket(socket.AF_UNIX) as trial:
                trial.settimeout(_CONNECT_TIMEOUT)
                trial.connect(unquote(parts.path))
        except OSError:
            return False
        return True
    address = parts.hostname or "", parts.port or 6379
    try:
        socket.create_connection(address, _CONNECT_TIMEOUT).close()
    except OSError:
        return False
    return True


def from_run_file(settings: Settings, key: str) -> str | None:
    """Return an entry of the run file; None if `settings` name their own Redis, or it is empty."""
    if settings.redis_url is not None:
        return None
    value = read_run_file(settings).get(key)
    return value if isinstance(value, str) else None


_log = structlog.get_logger(__name__)


class Connections:
    """The Redis clients that a process shares among its threads.

    `main` holds jobs, results and streams. `frames` holds the frames: the same server, unless the
    settings name another. Without `settings.redis_url`, both addresses come from the run file of a
    local installation.

    With `patient`, a long-lived program waits for a server that refuses work for now. `machine` is
    the clock of this machine, which a test may set wrong.

    Attributes:
        outage, frames_outage: what `main` and `frames` refuse at the moment; the same object if
            they are the same server.
        clock: the time of `main`, by which all machines go; this process shares it.

    Raises StreamerError(REDIS_UNAVAILABLE).
    """

    def __init__(
        self, settings: Settings, *, patient: bool = False, machine: Clock | None = None
    ) -> None:
        self._connect(settings, patient)
        self._machine = machine or SystemClock()
        self._closed_idle_at = self._machine.monotonic()
        self.clock = ServerClock(self._ask_time, self._machine)
        self.clock.measure()
        if patient:
            self.clock.follow()
        share(self.clock)

    def _ask_time(self) -> float | None:
        try:
            seconds, microseconds = self.main.time()
        except redis.exceptions.RedisError:
            return None
        self._close_idle()
        return seconds + microseconds / 1e6

    def _close_idle(self) -> None:
        """Close the connections that are not in use, every few minutes. Each thread that is busy at
        the same time as the others opens one, and none would be closed after the busiest moment of
        a program's life."""
        now = self._machine.monotonic()
        if now - self._closed_idle_at < _IDLE_INTERVAL:
            return
        self._closed_idle_at = now
        for client in (self.main, self.frames):
            client.connection_pool.disconnect(inuse_connections=False)

    def _connect(self, settings: Settings, patient: bool) -> None:
        self._frames_memory = settings.frames_memory
        url, frames_url = settings.redis_url, settings.frames_redis_url
        from_run_file = url is None
        if url is None:
            run = read_run_file(settings)
            url, frames_url = run["redis_url"], frames_url or run.get("frames_redis_url")
        self.outage = self.frames_outage = Outage()
        try:
            self.main = connect(url, self.outage if patient else None)
        except StreamerError:
            if from_run_file and not _listens(url):  # the file is older than a crash
                raise StreamerError(ErrorCode.REDIS_UNAVAILABLE, NOTHING_RUNNING) from None
            raise
        self.outage.client = self.frames = self.main
        if not frames_url:
            return
        if frames_url != url:
            self.frames_outage = Outage("redis (frames)")
        try:
            self.frames = connect(
                frames_url,
                self.frames_outage if patient else None,
                timeout=FRAMES_TIMEOUT,
                retries=1,
            )
        except StreamerError:
            self.main.close()
            raise
        if self.frames_outage is not self.outage:
            self.frames_outage.client = self.frames

    @cached_property
    def frame_memory(self) -> int:
        """Bytes that all frames together may take.

        The setting `frames_memory`. Without it, three quarters of the frame server's `maxmemory`,
        or half if the server also holds jobs and results. A server without `maxmemory` counts as
        a quarter of its machine's memory, and one that may not be asked as 1 GiB.
        Read once; raises redis.exceptions.RedisError.
        """
        if self._frames_memory is not None:
            return self._frames_memory
        memory = read_info(self.frames) or {}
        bound = (
            int(memory.get("maxmemory") or 0) or int(memory.get("total_system_memory") or 0) // 4
        )
        share = 0.5 if self.shared else 0.75
        return max(MIN_FRAME_MEMORY, int(share * (bound or ASSUMED_MEMORY)))

    @property
    def shared(self) -> bool:
        """Whether one server holds frames, jobs and results; True if it may not be asked."""
        if self.frames is self.main:
            return True
        runs = [(read_info(client) or {}).get("run_id") for client in (self.main, self.frames)]
        return runs[0] == runs[1]

    def lacks(self) -> list[str]:
        """Return what the servers do not do as the service needs it, a sentence each.

        Raises redis.exceptions.RedisError.
        """
        if self.shared:
            return [lack.message for lack in examine_server(self.main, ("jobs", "frames"))]
        return [
            *(lack.message for lack in examine_server(self.main, ("jobs",))),
            *(
                f"The server of the frames: {lack.message}"
                for lack in examine_server(self.frames, ("frames",))
            ),
        ]

    def close(self) -> None:
        """Close all connections. The object cannot be used afterwards."""
        self.clock.stop()
        self.main.close()
        self.frames.close()

    def __enter__(self) -> "Connections":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def log_lacks(connections: Connections) -> None:
    """Log once, when a program starts, what the servers do not do as the service needs it."""
    try:
        lacks = connections.lacks()
    except redis.exceptions.RedisError:
        return  # an outage, which the program waits out and logs itself
    for lack in lacks:
        _log.warning("redis_lacks", advice=lack)
