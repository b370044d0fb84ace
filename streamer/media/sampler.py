"""Which frames of a stream are kept."""

import math

_TOLERANCE = 0.001
"""Seconds that a timestamp may fall short of its due time: containers round to milliseconds."""

_BEHIND = 0.5
"""Part of an interval that sampling may be late before it skips to the next due time."""

_STEP_BACK = 0.5


class FpsSampler:
    """Keeps `fps` frames a second of stream time: the first one at or after every due time.

    Due times are a grid, so that the rate does not drift, however irregular the frames are. A
    frame that comes early by jitter costs nothing: the next one takes its place, and the grid
    stays. After a gap the grid goes on from where the stream is; a step back starts it anew.
    """

    def __init__(self, fps: float) -> None:
        self._interval = 1.0 / fps
        self._origin: float | None = None
        self._due = 0.0
        self._last = 0.0

    @property
    def due(self) -> float:
        """Stream time before which no further frame will be kept, seconds."""
        return self._due - _TOLERANCE

    def keep(self, pts: float) -> bool:
        """Whether to keep the frame at `pts` seconds; frames are asked about in order."""
        if self._origin is None or pts < self._last - _STEP_BACK:
            self._origin, self._last = pts, pts
            self._due = pts + self._interval
            return True
        self._last = max(self._last, pts)
        if pts < self._due - _TOLERANCE:
            return False
        self._due += self._interval
        if self._due < pts - _BEHIND * self._interval:
            steps = math.floor((pts - self._origin + _TOLERANCE) / self._interval) + 1
            self._due = self._origin + steps * self._interval
        return True
