"""A submitted request as its caller sees it: wait for the result, stream the text, cancel."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

from nvila_core.generation.completion import Completion
from nvila_core.generation.logprobs import TokenLogprob


class Piece(NamedTuple):
    """Text that was added to an answer, and the log-probabilities of the tokens drawn meanwhile."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class Handle:
    """A submitted request; `Engine.submit` returns it.

    Every method may be called from any thread, also after the request has ended.
    """

    def __init__(self) -> None:
        self._future: Future[Completion] = Future()
        self._lock = threading.Lock()
        self._pieces: list[Piece] = []
        self._listeners: list[Callable[[], None]] = []
        self._cancelled = threading.Event()
        self._wake: Callable[[], None] = lambda: None

    @property
    def done(self) -> bool:
        """Whether the request has ended, successfully or not."""
        return self._future.done()

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the completion.

        Args:
            timeout: seconds; None waits for ever.

        Raises:
            TimeoutError: the request has not ended in time; it continues.
            NVILAError: the request failed; other exceptions are the model's own.
        """
        return self._future.result(timeout)

    def cancel(self) -> None:
        """End the request early: its result has the text so far and finish_reason "cancelled"."""
        self._cancelled.set()
        self._wake()

    async def stream(self) -> AsyncIterator[str]:
        """Yield the text in pieces as they are generated; joined, they are the completion's text.

        Raises:
            NVILAError: the request failed; other exceptions are the model's own.
        """
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def notify() -> None:
            with suppress(RuntimeError):  # the reader's loop may be closed before the request ends
                loop.call_soon_threadsafe(changed.set)

        with self._lock:
            self._listeners.append(notify)
        try:
            sent = 0
            while True:
                changed.clear()
                ended = self._future.done()
                with self._lock:
                    pieces = self._pieces[sent:]
                for piece in pieces:
                    if piece.text:
                        yield piece.text
                sent += len(pieces)
                if ended:
                    self._future.result()
                    return
                await changed.wait()
        finally:
            with self._lock:
                self._listeners.remove(notify)

    def pieces(self, start: int = 0) -> list[Piece]:
        """Return the pieces of the answer so far but for the first `start`, without waiting."""
        with self._lock:
            return self._pieces[start:]

    def put(self, text: str, logprobs: Sequence[TokenLogprob] = ()) -> None:
        """Add a piece; called by the engine."""
        if text or logprobs:
            with self._lock:
                self._pieces.append(Piece(text, tuple(logprobs)))
            self._notify()

    def finish(self, outcome: Completion | BaseException) -> None:
        """Set the result or the error; called by the engine. Only the first call counts."""
        if self._future.done():
            return
        if isinstance(outcome, BaseException):
            self._future.set_exception(outcome)
        else:
            self._future.set_result(outcome)
        self._notify()

    def on_cancel(self, wake: Callable[[], None]) -> None:
        """Set the function that `cancel` calls; called by the engine."""
        self._wake = wake

    def _notify(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for notify in listeners:
            notify()
