"""The `streamer` program. Heavy imports happen inside the commands, so that it starts at once."""

import sys
import time

_started: float | None = None


def running_for() -> float:
    """Seconds since the program began, with its imports; 0 where commands run without it."""
    return time.monotonic() - _started if _started is not None else 0.0


def main() -> None:
    """Entry point of the `streamer` script."""
    global _started
    _started = time.monotonic()
    try:
        from streamer.cli.app import run

        run()
    except KeyboardInterrupt:  # so early that no command had begun
        sys.exit(130)
