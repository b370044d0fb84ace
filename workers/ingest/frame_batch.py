"""Gather frames of a recording that are measured, encoded and stored together."""

import math
from collections.abc import Iterable

from streamer.clock import Clock
from streamer.media.source import DecodedFrame

MAX_BATCH_FRAMES = 8
MAX_BATCH_PIXELS = 2_000_000
"""Frames that are held, and their pixels, about: more would not stay in the processor's caches."""

MAX_BATCH_WAIT = 0.25
"""Seconds for which a frame is held, about: a recording may come slowly over a network."""

_ROUNDING = 1e-6
"""Seconds by which the stream time of a frame may be off."""


class FrameBatch:
    """Decoded frames that wait to be stored, all of the same windows.

    One after the other, each step finds its code and data in the processor's caches, and Redis is
    asked once. They are of the same windows, so that a worker that continues after them gathers
    again each window that this one may not have asked about: see `StreamWatches.resume`.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._frames: list[DecodedFrame] = []
        self._pixels = 0
        self._since = 0.0  # monotonic

    def fits(self, pts: float, windows: Iterable[float]) -> bool:
        """Return whether the frame at stream time `pts` is of the same windows as those that wait;
        `windows` are their lengths. All in seconds."""
        if not self._frames:
            return True
        first = self._frames[0].pts
        return all(_index(first, length) == _index(pts, length) for length in windows)

    def add(self, frame: DecodedFrame) -> None:
        """Add a frame."""
        if not self._frames:
            self._since = self._clock.monotonic()
        self._frames.append(frame)
        self._pixels += frame.image.width * frame.image.height

    @property
    def due(self) -> bool:
        """Whether the frames that wait are to be stored now."""
        if not self._frames:
            return False
        full = len(self._frames) >= MAX_BATCH_FRAMES or self._pixels >= MAX_BATCH_PIXELS
        return full or self._clock.monotonic() - self._since >= MAX_BATCH_WAIT

    def take(self) -> list[DecodedFrame]:
        """Remove the frames that wait, and return them, oldest first."""
        frames, self._frames, self._pixels = self._frames, [], 0
        return frames


def _index(pts: float, length: float) -> int:
    return math.floor((pts + _ROUNDING) / length)
