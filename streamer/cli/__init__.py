"""The `streamer` program. Commands import heavy modules when they run, so that it starts fast."""

import sys
import time
from collections.abc import Callable

_started: float | None = None


def running_for() -> float:
    """Return the seconds since the program started, imports included; 0 outside the program."""
    return time.monotonic() - _started if _started is not None else 0.0


class BecomeServer(BaseException):
    """Raised by a command in a process that it forked: ends the command there, and all that it has
    begun, and calls `serve` instead."""

    def __init__(self, serve: Callable[[], None]) -> None:
        super().__init__()
        self.serve = serve


def main() -> None:
    """Run the `streamer` script."""
    global _started
    _started = time.monotonic()
    try:
        from streamer.cli.app import run

        run()
        return
    except KeyboardInterrupt:  # before any command started
        sys.exit(130)
    except BecomeServer as forked:
        serve = forked.serve
    serve()  # here, where no frame of the command is left
