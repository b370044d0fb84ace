"""Choose the frames of a stream to keep."""

import math
from typing import Protocol

import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from streamer.domain.sampling import Sampling

_TOLERANCE = 0.001
"""Seconds by which a timestamp may precede its due time: containers round to milliseconds."""

_MAX_BEHIND = 0.5
"""Share of an interval by which sampling may be late before it skips to the next due time."""

_MAX_LATE = 0.25
"""Share of an interval by which a live frame may be late if that saves much decoding."""

_STEP_BACK = 0.5

_CHECK_INTERVAL = 0.2
"""Seconds between two comparisons of frames."""

_CELLS = (64, 36)
_TOP = 46
"""Cells over which a change is averaged: 2 %, as many as a distant person covers."""


class Sampler(Protocol):
    """Decides about frames in presentation order; times are seconds of stream time."""

    @property
    def due(self) -> float:
        """Stream time before which no frame will be kept, seconds."""

    @property
    def slack(self) -> float:
        """Seconds after `due` within which a frame of a live stream is still in time."""

    @property
    def keyframes(self) -> bool:
        """Whether only key frames are kept."""

    def keep(self, pts: float, image: VideoFrame | None = None) -> bool:
        """Return whether to keep the frame `image` at `pts` seconds."""

    def resume(self, pts: float) -> None:
        """Continue as if the frame at `pts` had been kept."""


def make_sampler(sampling: Sampling) -> Sampler:
    """Return the sampler for `sampling`."""
    if sampling.mode == "keyframes":
        return KeyframeSampler(sampling.min_interval or 0.0)
    if sampling.mode == "change":
        assert sampling.threshold is not None
        assert sampling.min_interval is not None
        assert sampling.max_interval is not None
        return ChangeSampler(sampling.threshold, sampling.min_interval, sampling.max_interval)
    assert sampling.fps is not None
    return FpsSampler(sampling.fps)


class FpsSampler:
    """Keeps `fps` frames per second of stream time: the first frame at or after each due time.

    Due times are a grid, so the rate does not drift even if frames are irregular. If jitter makes a
    frame early, the next one takes its place, and the grid stays. After a gap, the grid continues
    at the current stream time. A step back restarts it.
    """

    keyframes = False

    def __init__(self, fps: float) -> None:
        self._interval = 1.0 / fps
        self._origin: float | None = None
        self._due = -math.inf
        self._last = 0.0

    @property
    def due(self) -> float:
        """Stream time before which no frame will be kept, seconds."""
        return self._due - _TOLERANCE

    @property
    def slack(self) -> float:
        """Seconds after `due` within which a frame of a live stream is still in time."""
        return _MAX_LATE * self._interval

    def keep(self, pts: float, image: VideoFrame | None = None) -> bool:
        """Return whether to keep the frame at `pts` seconds."""
        if self._origin is None or pts < self._last - _STEP_BACK:
            self._origin, self._last = pts, pts
            self._due = pts + self._interval
            return True
        self._last = max(self._last, pts)
        if pts < self._due - _TOLERANCE:
            return False
        self._due += self._interval
        if self._due < pts - _MAX_BEHIND * self._interval:
            steps = math.floor((pts - self._origin + _TOLERANCE) / self._interval) + 1
            self._due = self._origin + steps * self._interval
        return True

    def resume(self, pts: float) -> None:
        """Continue as if the frame at `pts` had been kept."""
        self._origin = None
        self.keep(pts)


class KeyframeSampler:
    """Keeps key frames that are at least `min_interval` seconds apart. It sees no other frames."""

    slack = 0.0
    keyframes = True

    def __init__(self, min_interval: float) -> None:
        self._min_interval = min_interval
        self._kept = -math.inf

    @property
    def due(self) -> float:
        """Stream time before which no frame will be kept, seconds."""
        return self._kept + self._min_interval - _TOLERANCE

    def keep(self, pts: float, image: VideoFrame | None = None) -> bool:
        """Return whether to keep the key frame at `pts` seconds."""
        if self._kept - _STEP_BACK <= pts < self.due:
            return False
        self._kept = pts
        return True

    def resume(self, pts: float) -> None:
        """Continue as if the frame at `pts` had been kept."""
        self._kept = pts


class ChangeSampler:
    """Keeps a frame that differs by `threshold` from the last kept one.

    Kept frames are at least `min_interval` seconds apart. After `max_interval` seconds, the next
    frame is kept in any case. The difference is that of the luma (0 to 1), averaged over the 2 % of
    the frame that differ most: large for a small moving object, near zero for camera noise.
    """

    slack = 0.0
    keyframes = False

    def __init__(self, threshold: float, min_interval: float, max_interval: float) -> None:
        self._threshold = threshold
        self._min_interval = min_interval
        self._max_interval = max_interval
        self._kept = self._compared = -math.inf
        self._kept_cells: NDArray[np.float32] | None = None

    @property
    def due(self) -> float:
        """Stream time before which no frame will be kept, seconds."""
        return max(self._kept + self._min_interval, self._compared + _CHECK_INTERVAL) - _TOLERANCE

    def keep(self, pts: float, image: VideoFrame | None = None) -> bool:
        """Return whether to keep the frame `image` at `pts` seconds."""
        if self._kept - _STEP_BACK <= pts < self.due:
            return False
        self._compared = pts
        cells = _cells(image) if image is not None else None
        known = self._kept_cells is not None and cells is not None
        waited = pts - self._kept
        if (
            known
            and 0 <= waited < self._max_interval - _TOLERANCE
            and difference(self._kept_cells, cells) < self._threshold  # type: ignore[arg-type]
        ):
            return False
        self._kept, self._kept_cells = pts, cells
        return True

    def resume(self, pts: float) -> None:
        """Continue as if the frame at `pts` had been kept; its content is unknown."""
        self._kept, self._kept_cells = pts, None


def difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Return the mean absolute difference, 0 to 1, of the 2 % of cells that differ most."""
    cells = np.abs(one - other).ravel()
    return float(np.partition(cells, -_TOP)[-_TOP:].mean())


def _cells(image: VideoFrame) -> NDArray[np.float32]:
    """Return the mean luma, 0 to 1, of 64 x 36 cells of the frame."""
    if image.format.name in {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "nv12", "gray"}:
        plane = image.planes[0]  # the luma plane needs no conversion
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        luma = rows[: image.height, : image.width]
    else:
        luma = image.reformat(format="gray", threads=1).to_ndarray().astype(np.uint8, copy=False)
    small = cv2.resize(luma, _CELLS, interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255.0
