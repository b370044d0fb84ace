"""Provide time as an object, so that tests need not wait.

Code that compares or stores wall-clock times, or sleeps, takes a `Clock`. Code that waits for a
socket or a process, or measures how long something takes, calls `time.monotonic` directly.
"""

import time
from typing import Protocol


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
