"""Ctrl-C and its kin for programs that own child processes: a flag, never an exception.

An exception may strike between creating a thing and remembering to remove it; a flag may not.
"""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Self, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):  # noqa: N818 - a wish, not an error
    """The user asked to stop while something was under way."""


class StopSignals:
    """While entered, SIGINT, SIGTERM and SIGHUP only set `stopped`. Main thread only.

    A self-pipe instead of threading.Event: Event.set inside a handler deadlocks when the signal
    lands while the same thread holds the event's lock in wait().
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
        with contextlib.suppress(BlockingIOError):  # a full pipe wakes its reader anyway
            os.write(self._write, b"x")

    def wait(self, timeout: float) -> bool:
        """Sleep up to `timeout` seconds; True as soon as (and ever after) a signal came."""
        if not self.stopped:
            select.select([self._read], [], [], timeout)
        return self.stopped

    def check(self) -> None:
        """Raise Interrupted once a signal came."""
        if self.stopped:
            raise Interrupted

    def call(self, function: Callable[[], T]) -> T:
        """`function()`, abandoned in its (daemon) thread with Interrupted when a signal comes.

        For calls that may block for seconds and own nothing that must be cleaned up. Never start
        a process in one: it would die with the thread (PR_SET_PDEATHSIG).
        """
        self.check()
        outcome: list[tuple[T | None, BaseException | None]] = []

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
