"""The `streamer` program. Commands import heavy modules when they run, so that it starts fast."""

import sys
import time

_started: float | None = None


def running_for() -> float:
    """Return the seconds since the program started, imports included; 0 outside the program."""
    return time.monotonic() - _started if _started is not None else 0.0


def main() -> None:
    """Run the `streamer` script."""
    global _started
    _started = time.monotonic()
    try:
        from streamer.cli.app import run

        run()
    except KeyboardInterrupt:  # before any command started
        sys.exit(130)
