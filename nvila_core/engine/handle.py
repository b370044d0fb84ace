"""A submitted request as its caller sees it: a result to wait for, text to stream, a way to
cancel."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from contextlib import suppress

from nvila_core.generation.completion import Completion


class Handle:
    """Returned by `Engine.submit`. Every method may be called from any thread, and after the
    end."""

    def __init__(self) -> None:
        self._future: Future[Completion] = Future()
        self._lock = threading.Lock()
        self._deltas: list[str] = []
        self._listeners: list[Callable[[], None]] = []
        self._cancelled = threading.Event()
        self._wake: Callable[[], None] = lambda: None

    @property
    def done(self) -> bool:
        """Whether the request has ended, well or not."""
        return self._future.done()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the answer.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: not finished in time; the request goes on.
            NVILAError: the request failed; other exceptions are the model's own.
        """
        return self._future.result(timeout)

    def cancel(self) -> None:
        """Ask for the end; the result then has finish_reason "cancelled" and the text so far."""
        self._cancelled.set()
        self._wake()

    async def stream(self) -> AsyncIterator[str]:
        """The text in pieces as they are generated; together they are the completion's text.

        Raises:
            NVILAError: the request failed; other exceptions are the model's own.
        """
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with suppress(RuntimeError):  # the reader's loop was closed before the request ended
                loop.call_soon_threadsafe(news.set)

        with self._lock:
            self._listeners.append(notify)
        try:
            seen = 0
            while True:
                news.clear()
                ended = self._future.done()
                with self._lock:
                    deltas = self._deltas[seen:]
                for delta in deltas:
                    yield delta
                seen += len(deltas)
                if ended:
                    self._future.result()
                    return
                await news.wait()
        finally:
            with self._lock:
                self._listeners.remove(notify)

    def put(self, delta: str) -> None:
        """Engine side: more text."""
        if delta:
            with self._lock:
                self._deltas.append(delta)
            self._notify()

    def finish(self, outcome: Completion | BaseException) -> None:
        """Engine side: the end; only the first call counts."""
        if self._future.done():
            return
        if isinstance(outcome, BaseException):
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)
        self._notify()

    def on_cancel(self, wake: Callable[[], None]) -> None:
        """Engine side: what to call when the caller cancels."""
        self._wake = wake

    def _notify(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for notify in listeners:
            notify()
