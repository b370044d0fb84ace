"""Decide who may use the engine at once: many requests together, or one suspect alone."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_CHECK_INTERVAL = 0.25  # seconds between two calls of `check`


class Isolation:
    """Lets requests share the engine, except suspects, which use it alone.

    A request that was in the engine when its worker broke down may have caused it. On its last
    attempt it runs alone: either it is answered, or no other request suffers from it.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._alone = False
        self._suspects = 0

    @contextmanager
    def enter(self, alone: bool, check: Callable[[], None]) -> Iterator[None]:
        """Wait for a place, and hold it. `check` is called while waiting, and may raise."""
        with self._changed:
            self._suspects += alone
            try:
                while not self._has_place(alone):
                    check()
                    self._changed.wait(_CHECK_INTERVAL)
                self._inside += 1
                self._alone = alone
            finally:
                self._suspects -= alone
                self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()

    def _has_place(self, alone: bool) -> bool:
        if alone:
            return self._inside == 0
        return not self._alone and not self._suspects  # otherwise a suspect would wait for ever
