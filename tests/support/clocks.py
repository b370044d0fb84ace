"""Clocks for tests: see `streamer.clock.Clock`."""

from streamer.clock import SystemClock


class ManualClock:
    """A clock that stands still until the test sets `now` or something sleeps."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now
        """Seconds since the Unix epoch."""

    def time(self) -> float:
        """Return `now`."""
        return self.now

    def monotonic(self) -> float:
        """Return `now`."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Move the clock forward by `seconds`, at once."""
        self.now += seconds


class SkippingClock(SystemClock):
    """The machine's own clock, except that sleeping skips ahead at once.

    `slept` is how many seconds were skipped.
    """

    def __init__(self) -> None:
        self.slept = 0.0

    def time(self) -> float:
        """Return the wall clock plus what was slept, seconds since the Unix epoch."""
        return super().time() + self.slept

    def monotonic(self) -> float:
        """Return the monotonic clock plus what was slept, seconds."""
        return super().monotonic() + self.slept

    def sleep(self, seconds: float) -> None:
        """Skip `seconds`; other threads may run first."""
        super().sleep(0)
        self.slept += seconds


class ShiftedClock(SystemClock):
    """The machine's own clock, set `ahead` seconds forward."""

    def __init__(self, ahead: float) -> None:
        self._ahead = ahead

    def time(self) -> float:
        """Return the shifted wall clock, seconds since the Unix epoch."""
        return super().time() + self._ahead
