"""Notice an engine that is stuck: a step that does not end while requests wait."""

import threading
from collections.abc import Callable, Mapping

from streamer.clock import Clock, SystemClock

MAX_INTERVAL = 5.0
"""Seconds between two checks, at most."""


class Watchdog:
    """Checks the counts of an engine now and then.

    Args:
        stats: returns `Engine.stats()`.
        limit: seconds that a step may take.
        on_stuck: called once, with the limit, when a step takes longer.
        clock: the time; a test moves it by hand.
    """

    def __init__(
        self,
        stats: Callable[[], Mapping[str, float]],
        limit: float,
        on_stuck: Callable[[float], None],
        clock: Clock | None = None,
    ) -> None:
        self._stats, self._limit, self._on_stuck = stats, limit, on_stuck
        self._clock = clock or SystemClock()
        self._steps: float | None = None
        self._since = 0.0
        self._ended = threading.Event()

    def start(self) -> None:
        """Check in a thread, until `stop` is called or the engine is stuck."""
        threading.Thread(target=self._run, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        """End the checks."""
        self._ended.set()

    def check(self) -> bool:
        """Return whether the engine is stuck."""
        stats, now = self._stats(), self._clock.monotonic()
        ended = stats["finished"] + stats["failed"] + stats["cancelled"]
        if stats["submitted"] == ended or stats["steps"] != self._steps:
            self._steps, self._since = stats["steps"], now
        return now - self._since > self._limit

    def _run(self) -> None:
        while not self._ended.wait(min(MAX_INTERVAL, self._limit / 4)):
            if self.check():
                self._on_stuck(self._limit)
                return
