"""How long the `streamer` program has been running, imports included."""

import time

_started: float | None = None


def note_start() -> None:
    """Note that the program starts now."""
    global _started
    _started = time.monotonic()


def running_for() -> float:
    """Return the seconds since the program started; 0 outside the program."""
    return time.monotonic() - _started if _started is not None else 0.0
