"""Convert the timestamps of a source to one clock that never steps back."""

import itertools
import math
from collections import deque
from typing import NamedTuple

MAX_JUMP = 10.0
"""Seconds by which timestamps of a live source may run ahead of arrival; more is a jump."""

MAX_DIVERGENCE = 3.0
"""Seconds by which the clock of a live source may diverge from the arrival of its packets."""

_MAX_STEP_BACK = 1.0
"""Seconds by which decoding times may go back between key frames: muxers err a little."""

_WRAPS = (2**33 / 90_000, 2**32 / 90_000)
"""Seconds after which the counters of MPEG-TS and of RTP wrap around."""

_MAX_WRAP_GAP = 10.0
"""Seconds between the last timestamp before a wrap and the first one after it."""

_BUCKET = 1.0
"""Seconds of arrival over which one measurement of the lag is taken."""

_MIN_AGREEING = 5
"""Successive measurements that must change in the same direction before a clock counts as wrong."""

_MAX_MEASUREMENTS = 60
"""Measurements to keep: `WallClock` corrects a clock that is off by less than 5 %."""


class UnrolledTime(NamedTuple):
    """Timestamps of one packet on the unrolled clock.

    Attributes:
        pts: presentation time in seconds; None when the packet has no timestamp.
        dts: decoding time in seconds; None when the packet has none.
        epoch: number of jumps of the source's clock so far.
    """

    pts: float | None
    dts: float | None
    epoch: int


class SourceClock:
    """Converts the timestamps of packets, in the order of arrival, to one rising clock.

    A source's clock may step back (joined files, a restarted encoder, a camera that sets its
    clock), jump ahead, wrap around, stand still or run at the wrong speed. This class decides what
    happened, once, before any other stage reads a timestamp:

    * If a key frame is presented before an earlier frame, or a decoding time goes back, a new epoch
      starts right after the newest frame. A wrap of a 32-bit or 33-bit counter continues the epoch.
    * If a live source jumps ahead by more than the elapsed time, a new epoch starts too. In a
      recording, a jump ahead remains a gap.
    * If the clock of a live source diverges from the arrival of its packets by more than
      `MAX_DIVERGENCE`, its packets are dated by arrival for the rest of the connection.
    """

    def __init__(self, *, live: bool, gap: float = 0.04, bursts: bool = False) -> None:
        """
        Args:
            live: whether packets arrive while they are recorded.
            gap: seconds between two frames, until the source shows them.
            bursts: whether packets arrive segment by segment, so that arrival times mean little.
        """
        self._live = live
        self._bursts = bursts
        self._gap = gap
        self._offset = 0.0
        self._epoch = 0
        self._top: float | None = None  # newest raw presentation time of this epoch
        self._previous_pts: float | None = None
        self._previous_dts: float | None = None
        self._keys = (-math.inf, -math.inf)  # raw presentation times of the last two key frames
        self._newest = -math.inf  # newest unrolled presentation time
        self._arrival = -math.inf
        self._lag = _LagMeter()
        self._anchor: tuple[float, float] | None = (
            None  # arrival and unrolled time, once by arrival
        )

    @property
    def epoch(self) -> int:
        """Number of jumps so far."""
        return self._epoch

    @property
    def by_arrival(self) -> bool:
        """Whether the source's clock is wrong, so that packets are dated by arrival."""
        return self._anchor is not None

    def unroll(
        self, pts: float | None, dts: float | None, *, key: bool, arrival: float
    ) -> UnrolledTime:
        """Convert the timestamps of the next packet.

        Args:
            pts, dts: presentation and decoding time by the source's clock, seconds.
            key: whether the packet is a key frame.
            arrival: when the packet arrived, seconds of a monotonic clock.
        """
        shown = pts if pts is not None else dts
        if shown is None:
            return UnrolledTime(None, None, self._epoch)
        if self._anchor is None:
            self._follow(pts, dts, shown, key, arrival)
            placed = shown + self._offset
            if self._diverges(placed, arrival):
                self._anchor = (arrival, max(self._newest, placed + self._lag.divergence))
                self._epoch += 1
        if self._anchor is not None:
            since, place = self._anchor
            placed = max(place + (arrival - since), self._newest + 0.001)
            self._offset = placed - shown
        if key:
            self._keys = (self._keys[1], shown)
        self._newest = max(self._newest, placed)
        self._top = shown if self._top is None else max(self._top, shown)
        self._previous_pts, self._previous_dts = pts, dts
        self._arrival = arrival
        return UnrolledTime(
            None if pts is None else pts + self._offset,
            None if dts is None else dts + self._offset,
            self._epoch,
        )

    def _follow(
        self, pts: float | None, dts: float | None, shown: float, key: bool, arrival: float
    ) -> None:
        """Move the offset if the source's clock jumped before this packet."""
        if self._top is None:
            return
        step = self._step(pts, dts)
        decoded = dts is not None and self._previous_dts is not None
        if self._went_back(step, shown, key, decoded):
            wrap = self._wrap(step)
            if wrap is not None:
                self._offset += wrap
                self._top -= wrap
                self._keys = (self._keys[0] - wrap, self._keys[1] - wrap)
                return
        elif not (self._live and step > MAX_JUMP + max(0.0, arrival - self._arrival)):
            if 0 < step < 1:
                self._gap = min(self._gap, step) if self._gap else step
            return
        passed = max(0.0, arrival - self._arrival) if self._live and not self._bursts else 0.0
        self._offset = self._newest + max(self._gap, passed) - shown
        self._epoch += 1
        self._top = None
        self._keys = (-math.inf, -math.inf)
        self._lag.restart()

    def _step(self, pts: float | None, dts: float | None) -> float:
        """Return the seconds from the previous packet, by the same kind of timestamp if it can."""
        if dts is not None and self._previous_dts is not None:
            return dts - self._previous_dts
        if pts is not None and self._previous_pts is not None:
            return pts - self._previous_pts
        previous = self._previous_pts if self._previous_pts is not None else self._previous_dts
        now = pts if pts is not None else dts
        assert previous is not None
        assert now is not None
        return now - previous

    def _went_back(self, step: float, shown: float, key: bool, decoded: bool) -> bool:
        """Return whether the clock stepped back; `decoded`: `step` is one of decoding times."""
        assert self._top is not None
        if key:
            return shown < self._top - self._gap / 2
        if decoded:
            return step < -_MAX_STEP_BACK
        # Frames may be reordered across one key frame, not across two.
        return shown < self._keys[0] or step < -MAX_JUMP

    def _wrap(self, step: float) -> float | None:
        """Return the period of the counter that wrapped; None if none did."""
        return next((wrap for wrap in _WRAPS if 0 <= step + wrap < _MAX_WRAP_GAP), None)

    def _diverges(self, placed: float, arrival: float) -> bool:
        if not self._live or self._bursts:
            return False
        self._lag.add(arrival - placed, arrival)
        return abs(self._lag.divergence) > MAX_DIVERGENCE


class _LagMeter:
    """Distinguishes a wrong clock from a network that stalls.

    The lag is arrival minus timestamp. Its minimum over a second excludes network delays, and a
    stall followed by a burst leaves it unchanged. Only a minimum that changes in the same direction
    over several seconds is caused by the clock.
    """

    def __init__(self) -> None:
        self._minima: deque[float] = deque(maxlen=_MAX_MEASUREMENTS)
        self._bucket = -math.inf
        self.divergence = 0.0

    def restart(self) -> None:
        """Discard all measurements, because the clock jumped."""
        self._minima.clear()
        self._bucket = -math.inf
        self.divergence = 0.0

    def add(self, lag: float, arrival: float) -> None:
        """Add the lag of the packet that came at `arrival`, and update `divergence` (seconds)."""
        if arrival - self._bucket < _BUCKET:
            self._minima[-1] = min(self._minima[-1], lag)
            return
        self._measure()
        self._bucket = arrival
        self._minima.append(lag)

    def _measure(self) -> None:
        recent = list(self._minima)[-_MIN_AGREEING - 1 :]
        steps = [after - before for before, after in itertools.pairwise(recent)]
        self.divergence = 0.0
        if len(steps) == _MIN_AGREEING and all(step > 0 for step in steps):
            self.divergence = recent[-1] - min(self._minima)
        elif len(steps) == _MIN_AGREEING and all(step < 0 for step in steps):
            self.divergence = recent[-1] - max(self._minima)
