"""Time as an object, so that a test can wait an hour at once."""

import time
from typing import Protocol


class Clock(Protocol):
    """What the service asks of time."""

    def time(self) -> float:
        """Wall clock, seconds since the Unix epoch."""
        ...

    def monotonic(self) -> float:
        """Seconds that never run backwards; only differences mean anything."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait `seconds`."""
        ...


class SystemClock:
    """The machine's own clock."""

    def time(self) -> float:
        """Wall clock, seconds since the Unix epoch."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment; never runs backwards."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Wait `seconds` of real time."""
        time.sleep(seconds)
