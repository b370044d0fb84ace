"""Provide time as an object: that of Redis, on which all machines agree, or that of a test.

Code that compares or stores wall-clock times, or sleeps, takes a `Clock`. Code that waits for a
socket or a process, or measures how long something takes, calls `time.monotonic` directly.

The clocks of two machines may differ by any amount. So the time of an installation is that of its
Redis: each process measures how far it is from its own monotonic clock.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

MAX_OFFSET = 2.0
"""Seconds that the clock of a machine may be off before its log says so."""

_INTERVAL = 5.0
"""Seconds between two measurements."""

_PROMPT = 0.1
"""Seconds within which an answer tells the time well enough."""

_MAX_QUESTIONS = 3
"""How often the server is asked in one measurement while its answers are slow."""

_MAX_DRIFT = 1e-3
"""Seconds, per second, by which two clocks may drift apart between two measurements."""


class Clock(Protocol):
    """Source of time."""

    def time(self) -> float:
        """Return the wall clock, seconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Return seconds that never run backwards; only differences have a meaning."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait `seconds`."""
        ...


class SystemClock:
    """The clock of this machine."""

    def time(self) -> float:
        """Return the wall clock, seconds since the Unix epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds that never run backwards; only differences have a meaning."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait `seconds`."""
        time.sleep(seconds)


class ServerClock:
    """The clock of a server, which is asked for its time now and then.

    Between two measurements time passes as on the monotonic clock of this machine, so setting the
    machine's own clock changes nothing. A measurement tells a range: the server read its clock
    between question and answer. As long as the ranges overlap, their common part counts, so that a
    slow answer does no harm. A range that does not overlap shows that the server's clock was set.

    The time stays in the range, and moves only as far as that takes. So it does not jump when
    an answer that took seconds is followed by a better one, unless it was wrong by more. The first
    answer is compared with the machine's own clock.

    Args:
        ask: returns the time of the server, seconds since the Unix epoch; None if it does not
            answer.
        machine: the clock of this machine, which counts until the first measurement.
    """

    def __init__(self, ask: Callable[[], float | None], machine: Clock | None = None) -> None:
        self._ask = ask
        self._machine = machine or SystemClock()
        self._range: tuple[float, float] | None = None  # seconds ahead of the monotonic clock
        self._ahead = 0.0  # the same, within the range
        self._measured_at = 0.0
        self._warned = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def time(self) -> float:
        """Return the time of the server, seconds since the Unix epoch."""
        if self._range is None:
            return self._machine.time()
        return self._machine.monotonic() + self._ahead

    def monotonic(self) -> float:
        """Return the monotonic clock of this machine."""
        return self._machine.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait `seconds`."""
        self._machine.sleep(seconds)

    @property
    def offset(self) -> float:
        """Seconds by which the clock of this machine is ahead of the server's."""
        return self._machine.time() - self.time()

    def measure(self) -> None:
        """Ask the server for its time, again if its answer is slow; keep the last measurement if
        it does not answer."""
        for _ in range(_MAX_QUESTIONS):
            began = self._machine.monotonic()
            server = self._ask()
            if server is None:
                return
            ended = self._machine.monotonic()
            self._narrow(server - ended, server - began, ended)
            if ended - began <= _PROMPT:
                break
        self._report()

    def _narrow(self, low: float, high: float, measured_at: float) -> None:
        """Take into account that the server is `low` to `high` seconds ahead of the monotonic clock
        of this machine."""
        if self._range is None:
            self._ahead = self._machine.time() - self._machine.monotonic()
        else:
            drift = _MAX_DRIFT * (measured_at - self._measured_at)
            overlap = max(low, self._range[0] - drift), min(high, self._range[1] + drift)
            if overlap[0] <= overlap[1]:
                low, high = overlap
        self._ahead = min(max(self._ahead, low), high)
        self._range, self._measured_at = (low, high), measured_at

    def _report(self) -> None:
        """Log once that this machine's clock is wrong, and once that it is right again."""
        offset = self.offset
        if (abs(offset) > MAX_OFFSET) == self._warned:
            return
        self._warned = not self._warned
        import structlog  # commands that log nothing start sooner

        log = structlog.get_logger(__name__)
        if self._warned:
            log.warning(
                "clock_differs",
                seconds=round(offset, 1),
                advice="The clock of this machine is that far ahead of Redis (behind, if "
                "negative). The service goes by Redis: enable time synchronization (NTP).",
            )
        else:
            log.info("clock_agrees")

    def follow(self) -> None:
        """Measure now and then, in a thread, until `stop`."""
        self._thread = threading.Thread(target=self._run, name="clock", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Measure no more."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(_INTERVAL):
            self.measure()


_shared: Clock = SystemClock()


def share(clock: Clock) -> None:
    """Let this process go by `clock`: that of the Redis to which it has connected."""
    global _shared
    _shared = clock


def shared() -> Clock:
    """Return the clock by which this process goes; that of the machine until it has connected."""
    return _shared
