"""Handle SIGINT, SIGTERM and SIGHUP by setting a flag, in programs that own child processes.

An exception could strike between the creation of a resource and the code that releases it.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self, TypeVar

_T = TypeVar("_T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):  # noqa: N818 - a request of the user, not an error
    """The user asked the program to stop."""


class StopSignals:
    """A context in which SIGINT, SIGTERM and SIGHUP only set `stopped`. Main thread only.

    It uses a self-pipe instead of threading.Event: Event.set in a signal handler deadlocks if the
    signal arrives while the same thread holds the event's lock in wait().
    """

    def __init__(self) -> None:
        self.stopped = False

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        os.set_blocking(self._read, False)
        self._old: dict[int, Any] = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.stopped = True
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes its reader too
            os.write(self._write, b"x")

    def wait(self, timeout: float) -> bool:
        """Sleep up to `timeout` seconds. Return True at once after any signal, else False."""
        if not self.stopped:
            select.select([self._read], [], [], timeout)
        return self.stopped

    def check(self) -> None:
        """Raise Interrupted after any signal."""
        if self.stopped:
            raise Interrupted

    def call(self, function: Callable[[], _T]) -> _T:
        """Return `function()`, called in a daemon thread; on a signal, raise Interrupted.

        The thread is abandoned then: use this for calls that may block for seconds and hold no
        resources. Never start a process in one: it would end with the thread (PR_SET_PDEATHSIG).
        """
        self.check()
        outcome: list[tuple[_T | None, BaseException | None]] = []

        def work() -> None:
            try:
                outcome.append((function(), None))
            except BaseException as error:
                outcome.append((None, error))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive() and not self.stopped:
            thread.join(0.05)
        self.check()
        value, error = outcome[0]
        if error is not None:
            raise error
        return value  # type: ignore[return-value]
