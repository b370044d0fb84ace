"""Notices an engine that is stuck: a step that does not end while requests wait."""

import threading
import time
from collections.abc import Callable, Mapping

LOOK_UP = 5.0
"""Seconds between two looks, or less."""


class Watchdog:
    """Looks at an engine's counts now and then.

    Args:
        stats: gives `Engine.stats()`.
        limit: seconds that a step may take.
        stuck: called once, when one takes longer, with the seconds.
        clock: seconds.
    """

    def __init__(
        self,
        stats: Callable[[], Mapping[str, float]],
        limit: float,
        stuck: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stats, self._limit, self._stuck, self._clock = stats, limit, stuck, clock
        self._steps: float | None = None
        self._since = 0.0
        self._ended = threading.Event()

    def start(self) -> None:
        """Look in a thread of its own, until `stop` or until the engine is stuck."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def look(self) -> bool:
        """Whether the engine is stuck."""
        stats, now = self._stats(), self._clock()
        ended = stats["finished"] + stats["failed"] + stats["cancelled"]
        if stats["submitted"] == ended or stats["steps"] != self._steps:
            self._steps, self._since = stats["steps"], now
        return now - self._since > self._limit

    def _run(self) -> None:
        while not self._ended.wait(min(LOOK_UP, self._limit / 4)):
            if self.look():
                self._stuck(self._limit)
                return
