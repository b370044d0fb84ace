"""Measure a stream from its frames: frame rate, key frames, decoding time and clock drift."""

from itertools import pairwise
from statistics import median

_BURST = 0.5
"""Seconds at the start in which a server may send faster than real time."""


class StreamStats:
    """Statistics of frames in presentation order; a value is None until it is known."""

    def __init__(self) -> None:
        self._pts: list[float] = []
        self._offsets: list[tuple[float, float]] = []
        self._keys: list[int] = []
        self._decode_ms: list[float] = []

    def add(self, pts: float, arrival: float, *, key: bool, decode_ms: float) -> None:
        """Add a frame at `pts` (stream seconds) that arrived at `arrival` (monotonic seconds)."""
        if key:
            self._keys.append(len(self._pts))
        self._pts.append(pts)
        self._offsets.append((arrival, arrival - pts))
        self._decode_ms.append(decode_ms)

    @property
    def frames(self) -> int:
        """Number of frames."""
        return len(self._pts)

    @property
    def key_frames(self) -> int:
        """Number of key frames."""
        return len(self._keys)

    @property
    def span(self) -> float:
        """Seconds of stream between the first and the last frame."""
        return self._pts[-1] - self._pts[0] if self._pts else 0.0

    @property
    def fps(self) -> float | None:
        """Frames per second of stream time."""
        pts = (
            self._pts[1:] if len(self._pts) > 5 else self._pts
        )  # the time of the first frame is a guess
        span = pts[-1] - pts[0] if pts else 0.0
        return (len(pts) - 1) / span if span > 0 else None

    @property
    def gop_frames(self) -> int | None:
        """Median frames from one key frame to the next."""
        steps = [after - before for before, after in pairwise(self._keys)]
        return round(median(steps)) if steps else None

    @property
    def gop_seconds(self) -> float | None:
        """Median seconds from one key frame to the next."""
        times = [self._pts[index] for index in self._keys]
        steps = [after - before for before, after in pairwise(times)]
        return median(steps) if steps else None

    @property
    def decode_ms(self) -> float | None:
        """Mean time to decode one frame, milliseconds."""
        return sum(self._decode_ms) / self.frames if self._decode_ms else None

    @property
    def clock_drift(self) -> float | None:
        """Seconds per second that the stream's clock loses (+) or gains (-) on this machine's.

        Networks only add delay, so the earliest arrivals of the first and of the last third of the
        time give the drift. It needs three seconds, and ignores the first half second.
        """
        if not self._offsets:
            return None
        began = self._offsets[0][0] + _BURST
        seen = [pair for pair in self._offsets if pair[0] >= began]
        if len(seen) < 10 or seen[-1][0] - seen[0][0] < 3.0 - _BURST:
            return None
        third = (seen[-1][0] - seen[0][0]) / 3
        early = [pair for pair in seen if pair[0] <= seen[0][0] + third]
        late = [pair for pair in seen if pair[0] >= seen[-1][0] - third]
        first, last = (min(part, key=lambda pair: pair[1]) for part in (early, late))
        return (last[1] - first[1]) / (last[0] - first[0])
