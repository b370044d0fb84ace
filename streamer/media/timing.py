"""Stream time and wall clock of frames, whatever a source does to its timestamps."""

import math

MAX_DRIFT = 0.5
"""Seconds that wall clock and stream time may differ before the wall clock is anchored anew."""

MAX_BURST = 30.0
"""The same for a source that sends whole segments of so many seconds at most."""

MAX_JUMP = 10.0
"""Seconds that a live source's timestamps may run ahead of its frames before it is a jump."""

_STEP_BACK = 1.0
_SLEW = 0.01


class WallClock:
    """When a live frame was captured: the moment its packet came, without the network's jitter.

    No packet comes before its picture was taken, so the smallest distance between arrival and
    timestamp is the best one known; it follows slow drift, and is set anew after a jump.
    """

    def __init__(self, *, bursts: bool = False) -> None:
        """`bursts`: packets come segment by segment, and only the last of each comes in time."""
        self._max_drift = MAX_BURST if bursts else MAX_DRIFT
        self._slew = 0.0 if bursts else _SLEW
        self._offset: float | None = None
        self._first: float | None = None
        self._last = -math.inf

    def observe(self, timestamp: float, arrival: float) -> None:
        """A packet with `timestamp` (the source's own seconds) came at `arrival` (epoch)."""
        offset = arrival - timestamp
        if self._first is None:
            self._first = timestamp
        if self._offset is None or not 0 <= offset - self._offset <= self._max_drift:
            self._offset = offset
        else:
            self._offset += (offset - self._offset) * self._slew

    def at(self, timestamp: float | None, arrival: float) -> float:
        """Wall clock of the frame with `timestamp`; never before that of the frame before."""
        if timestamp is None and self._last == -math.inf:
            timestamp = self._first  # RTSP: the very first picture has none
        known = timestamp is not None and self._offset is not None
        time = timestamp + self._offset if known else arrival  # type: ignore[operator]
        self._last = max(self._last, time)
        return self._last


class StreamTime:
    """Turns a source's timestamps into seconds that start at 0 and go on through jumps.

    A step back, or a jump ahead of a live source, continues right after the last frame.
    A gap in a recording is a gap.
    """

    def __init__(self, *, live: bool, origin: float | None = None, gap: float = 0.04) -> None:
        self._live = live
        self._origin = origin
        self._gap = gap
        self._last: float | None = None
        self._last_arrival = 0.0

    def place(self, timestamp: float | None, arrival: float = 0.0) -> float:
        """Return the stream time of the next frame; `arrival`, wall clock, counts if it is live."""
        if timestamp is None:
            return self._guess(arrival)
        if self._origin is None and self._last is not None:  # only the frames before had none
            self._origin = timestamp - self._last - self._gap
        elif self._origin is None or (self._last is None and timestamp < self._origin):
            self._origin = timestamp
        seconds = timestamp - self._origin
        if self._last is not None and self._is_jump(seconds - self._last, arrival):
            self._origin = timestamp - self._last - self._gap
            seconds = self._last + self._gap
        return self._remember(seconds, arrival)

    def timestamp(self, seconds: float) -> float | None:
        """The source's own timestamp of a place, as far as is known."""
        return None if self._origin is None or self._last is None else seconds + self._origin

    def pass_over(self, timestamp: float, arrival: float) -> None:
        """A frame at `timestamp` will never be placed: what follows is measured from it."""
        if self._origin is None or self._last is None:
            return
        seconds = timestamp - self._origin
        if seconds > self._last and not self._is_jump(seconds - self._last, arrival):
            self._remember(seconds, arrival)

    def _is_jump(self, step: float, arrival: float) -> bool:
        if step < -_STEP_BACK:
            return True
        return self._live and step > MAX_JUMP + (arrival - self._last_arrival)

    def _guess(self, arrival: float) -> float:
        if self._last is None:
            return self._remember(0.0, arrival)
        passed = arrival - self._last_arrival if self._live else self._gap
        return self._remember(self._last + max(passed, 0.0), arrival)

    def _remember(self, seconds: float, arrival: float) -> float:
        self._last, self._last_arrival = seconds, arrival
        return seconds
