"""Sampled frames gathered into the windows of a watch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from streamer.domain import FrameRef, thinned


@dataclass(frozen=True)
class Window:
    """`[start, end)` in seconds, on the clock that was gathered by, and frames spread over it."""

    start: float
    end: float
    frames: list[FrameRef]


class WindowGatherer:
    """Cuts one stream's frames into windows of `length` seconds, back to back.

    `by` is the clock: `time`, from the first frame on, for live streams; `pts`, from 0, for
    recordings. A window without frames does not exist. `pick` thins a window's frames to
    `max_frames`; however many come, about twice that many are held. A frame that is less than
    `tolerance` seconds early for the next window belongs to it: clocks jitter, sums round.
    """

    def __init__(
        self,
        length: float,
        max_frames: int,
        *,
        by: Literal["time", "pts"],
        pick: Callable[[Sequence[FrameRef], int], list[FrameRef]],
        tolerance: float = 1e-6,
    ) -> None:
        self._length = length
        self._max_frames = max_frames
        self._by = by
        self._tolerance = tolerance
        self._pick = pick
        self._origin: float | None = None if by == "time" else 0.0
        self._frames: list[FrameRef] = []
        self._newest: FrameRef | None = None
        self._passed: FrameRef | None = None  # the newest, while it is not among `_frames`
        self._index = self._seen = 0
        self._open_from = 0  # windows before this one have been closed
        self._stride = 1

    def add(self, frame: FrameRef, quiet: float = 0.0) -> list[Window]:
        """Take the next frame; returns the windows that it closes: none, one or two.

        No frame will follow within `quiet` seconds: a window that would end meanwhile is complete
        now, and nobody has to wait for its end.
        """
        at = self._at(frame)
        if self._origin is None:
            self._origin = at
        index = math.floor((at - self._origin + self._tolerance) / self._length)
        index = max(index, self._open_from)
        closed = [self.flush()] if index > self._index else []
        if self._newest is None:
            self._index = index
        self._gather(frame)
        if at + quiet + self._tolerance >= self._origin + (self._index + 1) * self._length:
            closed.append(self.flush())
        return [window for window in closed if window is not None]

    def advance(self, at: float) -> Window | None:
        """No frame will follow before `at`: the open window, if it has ended by then."""
        if self._newest is None or self._origin is None:
            return None
        over = at >= self._origin + (self._index + 1) * self._length
        return self.flush() if over else None

    def flush(self, end: float | None = None) -> Window | None:
        """What has been gathered, as a window, and start a new one.

        With `end` no frame will follow those gathered: the window ends there, or where it would
        have ended anyway, whichever comes first.
        """
        if self._newest is None or self._origin is None:
            return None
        frames = self._frames
        if self._passed is not None:
            frames.append(self._passed)
        start = self._origin + self._index * self._length
        stop = start + self._length
        if end is not None:
            stop = min(stop, max(end, self._at(self._newest)))
        window = Window(start, stop, self._pick(frames, self._max_frames))
        self._open_from = self._index + 1
        self._clear()
        return window

    def restart(self) -> None:
        """Begin anew at the next frame: forget what was gathered, and where live windows began."""
        self._clear()
        if self._by == "time":
            self._origin, self._open_from = None, 0

    def _at(self, frame: FrameRef) -> float:
        return frame.time if self._by == "time" else frame.pts

    def _gather(self, frame: FrameRef) -> None:
        if self._passed is not None:
            frame = thinned([self._passed, frame], [1])[0]
        self._newest = self._passed = frame
        if self._seen % self._stride == 0:
            self._frames.append(frame)
            self._passed = None
            if len(self._frames) > 2 * self._max_frames:
                self._passed = frame if len(self._frames) % 2 == 0 else None
                self._frames = thinned(self._frames, range(0, len(self._frames), 2))
                self._stride *= 2
        self._seen += 1

    def _clear(self) -> None:
        self._frames, self._newest, self._passed = [], None, None
        self._index = self._seen = 0
        self._stride = 1
