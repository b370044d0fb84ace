"""Gather the sampled frames of a stream into the windows of a watch."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from streamer.domain.frame import FrameRef, thinned

MAX_DRIFT = 0.5
"""Seconds by which stream time and wall clock may drift apart before windows are dated again."""


@dataclass(frozen=True)
class Window:
    """The frames of `[start, end)`, thinned.

    Attributes:
        start, end: stream time, seconds.
        frames: at least one, oldest first.
        epoch: wall clock of stream time 0, seconds since the Unix epoch.
    """

    start: float
    end: float
    frames: list[FrameRef]
    epoch: float

    @property
    def captured(self) -> tuple[float, float]:
        """Start and end on the wall clock, seconds since the Unix epoch."""
        return self.epoch + self.start, self.epoch + self.end


class WindowGatherer:
    """Cuts one stream's frames into windows of `length` seconds of stream time, back to back.

    Stream time never goes back, even where the clock of the camera or the machine does. The
    windows of a live stream start at its first frame, and start over when a clock was stepped (the
    frame's `epoch` changes): no window spans two datings. Those of a recording start at 0. A
    window without frames does not exist. The first window of a live stream may be shorter, so that
    its first answer comes early. So may the next two: they move the ends of all that follow forward
    by `shift`, so that those of streams that started together do not end together.

    Args:
        length: seconds of a window.
        max_frames: frames of a window, at most; about twice as many are held in memory.
        live: whether the stream is live.
        pick: thins the frames of a window to `max_frames`.
        tolerance: seconds. A frame that is less early for the next window belongs to it, because
            timestamps jitter and sums are rounded.
        first_length: seconds of the first window of a live stream.
        shift: seconds, less than `length`.
    """

    def __init__(
        self,
        length: float,
        max_frames: int,
        *,
        live: bool,
        pick: Callable[[Sequence[FrameRef], int], list[FrameRef]],
        tolerance: float = 1e-6,
        first_length: float = math.inf,
        shift: float = 0.0,
    ) -> None:
        self._length = length
        self._max_frames = max_frames
        self._live = live
        self._tolerance = tolerance
        self._pick = pick
        self._origin: float | None = None if live else 0.0
        self._wall_epoch: float | None = None  # wall clock of stream time 0
        self._earliest = math.inf  # the same by the frame of this window that was least late
        self._frames: list[FrameRef] = []
        self._newest: FrameRef | None = None
        self._passed: FrameRef | None = None  # the newest, while it is not among `_frames`
        self._index = self._seen = 0
        self._open_from = 0  # windows before this one have been closed
        self._stride = 1
        # seconds that the first window lacks at its start
        self._cut = max(0.0, length - first_length) if live else 0.0
        # by how much windows are still to be cut: by half each, so that none is very short
        self._shift = shift if live else 0.0
        self._shifts = [self._shift / 2] * 2

    def __len__(self) -> int:
        """Return the number of frames that are held."""
        return len(self._frames)

    def add(self, frame: FrameRef, quiet: float = 0.0) -> list[Window]:
        """Add the next frame. Return the windows that it closes.

        No frame will follow within `quiet` seconds: a window that would end meanwhile is complete
        now, so that nothing waits for its end.
        """
        closed = []
        if self._live and self._newest is not None and frame.epoch != self._newest.epoch:
            closed.append(self.flush(self._newest.pts))
            self.restart()
        if self._origin is None:
            self._origin = frame.pts - self._cut
        index = self._index_at(frame.pts)
        if index > self._index:
            closed.append(self.flush())
            index = self._index_at(frame.pts)  # the window may have moved the next one
        if self._newest is None:
            self._index = index
        self._gather(frame)
        if frame.pts + quiet + self._tolerance >= self.ends_at:
            closed.append(self.flush())
        return [window for window in closed if window is not None]

    def _index_at(self, pts: float) -> int:
        assert self._origin is not None
        index = math.floor((pts - self._origin + self._tolerance) / self._length)
        return max(index, self._open_from)

    def advance(self, pts: float) -> Window | None:
        """Return the open window if it has ended: no frame will follow before `pts`."""
        return self.flush() if pts >= self.ends_at else None

    @property
    def ends_at(self) -> float:
        """Stream time at which the open window ends; infinite while it has no frame."""
        if self._newest is None or self._origin is None:
            return math.inf
        return self._origin + (self._index + 1) * self._length

    def flush(self, end: float | None = None) -> Window | None:
        """Return what has been gathered, as a window, and start a new one.

        With `end` no frame will follow before that time: the window ends there, or at its regular
        end, whichever comes first.
        """
        if self._newest is None or self._origin is None:
            return None
        frames = self._frames
        if self._passed is not None:
            frames.append(self._passed)
        start = self._origin + self._index * self._length
        stop = start + self._length
        if self._index == self._open_from:  # else nothing came while the cut one was open
            start += self._cut
        self._cut = 0.0
        if end is not None:
            stop = min(stop, max(end, self._newest.pts))
        window = Window(start, stop, self._pick(frames, self._max_frames), self._date())
        self._open_from = self._index + 1
        if self._shifts:
            self._cut = self._shifts.pop()
            self._origin -= self._cut
        self._clear()
        return window

    def _date(self) -> float:
        """Return the wall clock of stream time 0. It follows the frames when they drift away, so
        that windows stay back to back on the wall clock, too. A frame that was held up on its way
        is dated too late, and none too early."""
        if self._wall_epoch is None or abs(self._earliest - self._wall_epoch) > MAX_DRIFT:
            self._wall_epoch = self._earliest
        return self._wall_epoch

    def restart(self) -> None:
        """Forget what was gathered, and where live windows began."""
        self._clear()
        if self._live:
            self._origin, self._open_from, self._wall_epoch = None, 0, None
            self._cut, self._shifts = 0.0, [self._shift / 2] * 2

    def _gather(self, frame: FrameRef) -> None:
        self._earliest = min(self._earliest, frame.time - frame.pts)
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
        self._earliest = math.inf
        self._index = self._seen = 0
        self._stride = 1
