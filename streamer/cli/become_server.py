"""Ends a command in a process that it forked, which becomes a server."""

from collections.abc import Callable


class BecomeServer(BaseException):
    """Raised by a command in a process that it forked: ends the command there, and all that it has
    begun, and calls `serve` instead."""

    def __init__(self, serve: Callable[[], None]) -> None:
        super().__init__()
        self.serve = serve
