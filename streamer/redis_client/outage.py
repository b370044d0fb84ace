"""Wait while Redis refuses work: say so once, try again with growing pauses, say when it ends."""

import contextlib
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

import redis
import structlog

from streamer.clock import Clock, SystemClock
from streamer.errors import StreamerError
from streamer.redis_client.errors import RedisTrouble, trouble_of

_T = TypeVar("_T")

_FORGOTTEN = 30.0
"""Seconds after which something that failed and was not tried again no longer counts."""

_STAGE = 30.0
"""Seconds within which another reason is a stage of the same outage, as in a failover."""

_MAX_REPORTED, _REPORTED_WITHIN = 3, 60.0
"""How many outages of one kind are logged within so many seconds: a server at the limit of its
memory would otherwise begin and end one with every frame."""

_log = structlog.get_logger(__name__)


class Outage:
    """What a program cannot do at the moment, over all its threads.

    Whatever fails is reported with `failed`, under the name of what was tried; whatever works, with
    `worked`. It begins with the first failure, and ends when all that failed has worked again (or
    was given up). Each is one line of the log, however many threads there are.

    Args:
        server: the name of the server in the log.
        client: its client; it gets new connections when a failover requires them.
        first_pause, max_pause: seconds between two attempts, which double.
        clock: the time.
    """

    def __init__(
        self,
        server: str = "redis",
        client: redis.Redis | None = None,
        *,
        first_pause: float = 0.25,
        max_pause: float = 5.0,
        clock: Clock | None = None,
    ) -> None:
        self.client = client
        self.first_pause = first_pause
        self.max_pause = max_pause
        self._server = server
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._failing: dict[str, float] = {}
        self._began = 0.0
        self._message = ""
        self._reported: dict[str, deque[float]] = {}  # by kind
        self._reported_message = ""
        self._reported_at = -math.inf
        self._quiet = False  # began too soon after others to be reported

    @property
    def reason(self) -> str | None:
        """Why work is refused; None while all works."""
        return self._message if self._failing else None

    def failed(self, activity: str, error: BaseException) -> RedisTrouble | None:
        """Note that `activity` failed; return what is wrong with Redis, if it is Redis."""
        trouble = None if isinstance(error, StreamerError) else trouble_of(error)
        message = trouble.message if trouble is not None else str(error)
        kind = trouble.kind if trouble is not None else ""
        if trouble is not None and trouble.reconnect and self.client is not None:
            with contextlib.suppress(redis.exceptions.RedisError, OSError):
                self.client.connection_pool.disconnect(inuse_connections=False)
        with self._lock:
            now = self._clock.monotonic()
            if not self._failing:
                self._began = now
                reported = self._reported.setdefault(kind, deque(maxlen=_MAX_REPORTED))
                self._quiet = (
                    len(reported) == _MAX_REPORTED and now - reported[0] < _REPORTED_WITHIN
                )
                tell = not self._quiet
            else:
                stage = now - max(self._began, self._reported_at) < _STAGE
                tell = not stage and (self._quiet or message != self._reported_message)
            self._failing[activity] = now
            self._message = message
            if tell:
                self._quiet = False
                self._reported_message, self._reported_at = message, now
                self._reported.setdefault(kind, deque(maxlen=_MAX_REPORTED)).append(now)
        if tell:
            _log.warning("outage_began", server=self._server, reason=message)
        return trouble

    def worked(self, activity: str) -> None:
        """Note that `activity` worked. Cheap while nothing fails."""
        if not self._failing:
            return
        with self._lock:
            if not self._failing:
                return
            now = self._clock.monotonic()
            self._failing.pop(activity, None)
            for name, when in list(self._failing.items()):
                if now - when > max(_FORGOTTEN, 2 * self.max_pause):
                    del self._failing[name]
            if self._failing or self._quiet:
                return
            lasted = now - self._began
        _log.warning("outage_ended", server=self._server, after_s=round(lasted, 1))

    def pauses(self) -> Iterator[float]:
        """Yield the seconds to wait before the next attempt, and the next."""
        pause = self.first_pause
        while True:
            yield pause
            pause = min(2 * pause, self.max_pause)

    def insist(self, activity: str, call: Callable[[], _T], wait: Callable[[float], bool]) -> _T:
        """Return `call()`, repeated for as long as Redis refuses it.

        `wait(seconds)` waits, and returns whether to give up. Raises the error of the last attempt
        then, and any that waiting does not cure.
        """
        for pause in self.pauses():
            try:
                result = call()
            except redis.exceptions.RedisError as error:
                trouble = trouble_of(error)
                if not trouble.passes:
                    raise
                self.failed(activity, error)
                if wait(pause):
                    raise
            else:
                self.worked(activity)
                return result
        raise AssertionError("pauses never end")
