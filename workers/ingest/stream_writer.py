"""Store frames and submit clips of a live stream in a thread, so that its camera never waits."""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

MAX_WAITING_FRAMES = 128
MAX_WAITING_BYTES = 16 << 20
"""Frames of a stream, and bytes of their JPEGs, that wait to be stored at most."""

_PATIENCE = 1.0
"""Seconds that a step may take while a frame waits for room: a playlist brings many at once. If it
takes longer, Redis is silent, and the frame is dropped."""

_FLUSH = 2.0
"""Seconds for which the end of a run waits for what is left to be stored."""


@dataclass(frozen=True, slots=True)
class _Step:
    call: Callable[[], None]
    frames: int = 0
    size: int = 0
    replaceable: bool = False


class StreamWriter:
    """Runs the steps of one stream, in the order in which they were given.

    An error of a step is raised by the next call, or at the end. Use it as a context manager: the
    end waits a moment for what is left.

    Args:
        refused: returns whether Redis is known to refuse frames at the moment.
    """

    def __init__(self, refused: Callable[[], bool]) -> None:
        self._refused = refused
        self._changed = threading.Condition()
        self._steps: deque[_Step] = deque()
        self._frames = 0  # that wait
        self._bytes = 0  # of their JPEGs
        self._began: float | None = None  # monotonic, when the step that runs began
        self._error: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="stream-writer", daemon=True)

    def offer(self, size: int, step: Callable[[], None]) -> bool:
        """Run `step`, which stores a frame of `size` bytes; return False if the frame is to be
        dropped, because too many wait."""
        with self._changed:
            self._raise()
            while self._frames >= MAX_WAITING_FRAMES or (
                self._frames and self._bytes + size > MAX_WAITING_BYTES
            ):
                if self._closing or self._refused() or self._silent():
                    return False
                self._changed.wait(0.05)
            self._append(_Step(step, 1, size))
            return True

    def then(self, step: Callable[[], None], *, replaceable: bool = False) -> None:
        """Run `step` after all before it. A `replaceable` one is left out if another such step
        follows at once."""
        with self._changed:
            self._raise()
            if replaceable and self._steps and self._steps[-1].replaceable:
                self._steps.pop()
            self._append(_Step(step, replaceable=replaceable))

    @property
    def waiting(self) -> int:
        """How many frames wait to be stored."""
        return self._frames

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        deadline = time.monotonic() + _FLUSH
        with self._changed:
            while (self._steps or self._began is not None) and self._error is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(left)
            self._closing = True
            self._steps.clear()
            self._changed.notify_all()
            self._raise()

    def _append(self, step: _Step) -> None:
        self._steps.append(step)
        self._frames += step.frames
        self._bytes += step.size
        self._changed.notify_all()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _silent(self) -> bool:
        return self._began is not None and time.monotonic() - self._began > _PATIENCE

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._steps and not self._closing:
                    self._changed.wait()
                if self._closing:
                    return
                step = self._steps.popleft()
                self._began = time.monotonic()
            error = None
            try:
                step.call()
            except BaseException as raised:
                error = raised
            with self._changed:
                self._began = None
                if not self._closing:
                    self._frames -= step.frames
                    self._bytes -= step.size
                self._error = self._error or error
                self._changed.notify_all()
