"""Date frames: place them in stream time, and estimate when they were captured."""

import math
from fractions import Fraction

_MAX_DRIFT = 0.5
"""Seconds by which capture times may drift from arrival before they are anchored again."""

MAX_BURST = 30.0
"""The same for a source that sends segments, which are at most this long."""

MAX_CLOCK_STEP = 1.0
"""Seconds by which this machine's clock may be slewed between two packets; more is a step."""

_SLEW = 0.01

_PATIENCE = 1.0
"""Seconds for which late packets are waited for that may catch up: more, while they do."""

_PROGRESS = 0.1
"""Seconds by which packets must become less late meanwhile."""


def to_seconds(stamp: int, time_base: Fraction) -> float:
    """Return a timestamp, in units of `time_base` seconds, in seconds.

    It is the float nearest to the product, without the cost of a fraction: each packet is asked for
    it several times.
    """
    return stamp * time_base.numerator / time_base.denominator


class WallClock:
    """Estimates when a live frame was captured: the arrival of its packet, without network jitter.

    No packet arrives before its frame is captured, so the smallest difference between arrival and
    timestamp is the best estimate. It follows slow drift. It is anchored again after a jump of
    the source's clock, and after a step of this machine's clock, which starts a new epoch.

    After the network or this program stood still, packets come late, in a burst, until they have
    caught up: the estimate stays. If they do not catch up, the source itself had stopped, or its
    link is too slow: the estimate is anchored again.
    """

    def __init__(self, *, bursts: bool = False) -> None:
        """
        Args:
            bursts: whether packets arrive segment by segment, so that only the last packet of each
                segment is in time.
        """
        self._max_drift = MAX_BURST if bursts else _MAX_DRIFT
        self._slew = 0.0 if bursts else _SLEW
        self._offset: float | None = None
        self._first: float | None = None
        self._last = -math.inf
        self._skew: float | None = None
        self._late: tuple[float, float] | None = None  # by how much, since when (monotonic)
        self._source_epoch = 0
        self.steps = 0
        """Number of steps of this machine's clock."""

    def observe(self, timestamp: float, arrival: float, monotonic: float, epoch: int = 0) -> None:
        """Add a packet.

        Args:
            timestamp: its time on the unrolled clock, seconds.
            arrival: wall clock of its arrival, seconds since the Unix epoch.
            monotonic: the same time on the monotonic clock, seconds.
            epoch: number of jumps of the source's clock.
        """
        skew = arrival - monotonic
        if self._skew is not None and abs(skew - self._skew) > MAX_CLOCK_STEP:
            self.steps += 1
            self._offset, self._last = None, -math.inf
        if epoch != self._source_epoch:
            self._offset = None
        self._skew, self._source_epoch = skew, epoch
        offset = arrival - timestamp
        if self._first is None:
            self._first = timestamp
        late = 0.0 if self._offset is None else offset - self._offset
        if late <= self._max_drift:
            self._late = None
        if self._offset is None or late < 0 or self._stays_late(late, monotonic):
            self._offset, self._late = offset, None
        elif self._late is None:
            self._offset += late * self._slew

    def _stays_late(self, late: float, monotonic: float) -> bool:
        """Return whether packets that are `late` seconds late do not catch up."""
        if not self._max_drift < late <= MAX_BURST:
            return late > MAX_BURST
        if self._late is None or late < self._late[0] - _PROGRESS:
            self._late = late, monotonic
        return monotonic - self._late[1] > _PATIENCE

    def at(self, timestamp: float | None, arrival: float) -> float:
        """Return when the frame with `timestamp` was captured, seconds since the Unix epoch.

        The time is not after `arrival` of the packet that completed the frame, and not before that
        of the previous frame, unless this machine's clock was set back.
        """
        if timestamp is None and self._last == -math.inf:
            timestamp = self._first  # RTSP: the very first frame has none
        time = arrival
        if timestamp is not None and self._offset is not None:
            time = min(arrival, timestamp + self._offset)
        self._last = max(self._last, time)
        return self._last


class StreamTime:
    """Converts unrolled timestamps to seconds that start at 0 and never go back.

    A frame without a timestamp is placed one `gap` after the previous frame or, in a live source,
    by its arrival.
    """

    def __init__(self, *, live: bool, origin: float | None = None, gap: float = 0.04) -> None:
        """
        Args:
            live: whether frames arrive while they are captured.
            origin: timestamp of stream time 0; None: that of the first frame.
            gap: seconds between two frames without timestamps.
        """
        self._live = live
        self._origin = origin
        self._gap = gap
        self._last: float | None = None
        self._last_arrival = 0.0

    def place(self, timestamp: float | None, arrival: float = 0.0) -> float:
        """Return the stream time of the next frame, seconds.

        Args:
            timestamp: its presentation time on the unrolled clock; None when unknown.
            arrival: when it arrived, seconds of a monotonic clock; used for live sources only.
        """
        if timestamp is None:
            return self._guess(arrival)
        if self._origin is None and self._last is not None:  # only earlier frames had none
            self._origin = timestamp - self._last - self._gap
        elif self._origin is None or (self._last is None and timestamp < self._origin):
            self._origin = timestamp
        seconds = timestamp - self._origin
        return self._remember(seconds if self._last is None else max(seconds, self._last), arrival)

    def timestamp(self, seconds: float) -> float | None:
        """Return the unrolled timestamp of a stream time; None while it is unknown."""
        return None if self._origin is None or self._last is None else seconds + self._origin

    def _guess(self, arrival: float) -> float:
        if self._last is None:
            return self._remember(0.0, arrival)
        passed = arrival - self._last_arrival if self._live else self._gap
        return self._remember(self._last + max(passed, 0.0), arrival)

    def _remember(self, seconds: float, arrival: float) -> float:
        self._last, self._last_arrival = seconds, arrival
        return seconds
