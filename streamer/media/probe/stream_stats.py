"""What a stream's frames tell about it while one watches: rate, key frames, bits, and its clock."""

from itertools import pairwise
from statistics import median

_BURST = 0.5
"""Seconds at the beginning in which a server may send faster than it records."""


class StreamStats:
    """Fed with frames in presentation order; every number is None until it can be known."""

    def __init__(self) -> None:
        self._pts: list[float] = []
        self._offsets: list[tuple[float, float]] = []
        self._keys: list[int] = []
        self._decode_ms: list[float] = []

    def add(self, pts: float, arrival: float, *, key: bool, decode_ms: float) -> None:
        """A frame at `pts` (stream seconds) came at `arrival` (any clock of ours, seconds)."""
        if key:
            self._keys.append(len(self._pts))
        self._pts.append(pts)
        self._offsets.append((arrival, arrival - pts))
        self._decode_ms.append(decode_ms)

    @property
    def frames(self) -> int:
        """Frames that came."""
        return len(self._pts)

    @property
    def key_frames(self) -> int:
        """How many of them were key frames."""
        return len(self._keys)

    @property
    def span(self) -> float:
        """Seconds of stream between the first frame and the last."""
        return self._pts[-1] - self._pts[0] if self._pts else 0.0

    @property
    def fps(self) -> float | None:
        """Frames per second of stream."""
        pts = self._pts[1:] if len(self._pts) > 5 else self._pts  # the first one's time is a guess
        span = pts[-1] - pts[0] if pts else 0.0
        return (len(pts) - 1) / span if span > 0 else None

    @property
    def gop_frames(self) -> int | None:
        """Frames from one key frame to the next."""
        steps = [after - before for before, after in pairwise(self._keys)]
        return round(median(steps)) if steps else None

    @property
    def gop_seconds(self) -> float | None:
        """Seconds from one key frame to the next."""
        times = [self._pts[index] for index in self._keys]
        steps = [after - before for before, after in pairwise(times)]
        return median(steps) if steps else None

    @property
    def decode_ms(self) -> float | None:
        """CPU or card time of decoding one frame, milliseconds."""
        return sum(self._decode_ms) / self.frames if self._decode_ms else None

    @property
    def clock_drift(self) -> float | None:
        """Seconds that the stream's clock loses (+) or gains (-) on ours in each second.

        Networks only ever delay: the earliest arrivals of the first half of the time and of the
        second tell the drift. It takes three seconds; the first half second does not count.
        """
        if not self._offsets:
            return None
        began = self._offsets[0][0] + _BURST
        seen = [pair for pair in self._offsets if pair[0] >= began]
        if len(seen) < 10 or seen[-1][0] - seen[0][0] < 3.0 - _BURST:
            return None
        middle = (seen[0][0] + seen[-1][0]) / 2
        first = min((pair for pair in seen if pair[0] < middle), key=lambda pair: pair[1])
        last = min((pair for pair in seen if pair[0] >= middle), key=lambda pair: pair[1])
        apart = last[0] - first[0]
        return (last[1] - first[1]) / apart if apart > 0.5 else None
