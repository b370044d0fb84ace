"""The threads in which a worker runs its jobs."""

import contextvars
import threading
from collections.abc import Callable
from queue import SimpleQueue


class SlotThreads:
    """Runs calls in threads, and keeps some that are idle for the next calls.

    A new thread for each job costs more than the rest of starting it, because its stack is new
    memory. A call finds the context variables of a new thread. The threads do not keep the process
    from ending: a job may hang.

    Args:
        most: how many idle threads are kept.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._idle: list[_SlotThread] = []
        self._closed = False

    def start(self, name: str, call: Callable[[], None]) -> None:
        """Run `call` in a thread that has this name meanwhile."""
        with self._lock:
            thread = self._idle.pop() if self._idle else None
        if thread is None:
            thread = _SlotThread(self._keep)
            thread.calls.put((name, call))
            thread.start()
        else:
            thread.calls.put((name, call))

    def close(self) -> None:
        """End the idle threads, and the others as soon as their calls have returned."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for thread in idle:
            thread.calls.put(None)

    def _keep(self, thread: "_SlotThread") -> bool:
        """Return whether a thread that has become idle is kept."""
        with self._lock:
            kept = not self._closed and len(self._idle) < self._most
            if kept:
                self._idle.append(thread)
            return kept


class _SlotThread(threading.Thread):
    """Runs the calls that it is given, as long as `keep` says so after each."""

    def __init__(self, keep: Callable[["_SlotThread"], bool]) -> None:
        super().__init__(name="slot", daemon=True)
        self.calls: SimpleQueue[tuple[str, Callable[[], None]] | None] = SimpleQueue()
        self._keep = keep

    def run(self) -> None:
        while (given := self.calls.get()) is not None:
            self.name, call = given
            contextvars.Context().run(call)
            del call, given  # what the job held is freed while the thread is idle
            self.name = "slot"
            if not self._keep(self):
                return
