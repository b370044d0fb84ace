"""Which frames of a stream are kept."""

import math
from typing import Protocol

import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from streamer.domain import Sampling

_TOLERANCE = 0.001
"""Seconds that a timestamp may fall short of its due time: containers round to milliseconds."""

_BEHIND = 0.5
"""Part of an interval that sampling may be late before it skips to the next due time."""

_LATE = 0.25
"""Part of an interval that a live frame may come late where that spares the decoder a lot."""

_STEP_BACK = 0.5

_LOOK = 0.2
"""Seconds between two looks at whether the picture has changed."""

_CELLS = (64, 36)
_TOP = 46
"""Cells, 2 % of them, that the change is averaged over: a person far away covers as many."""


class Sampler(Protocol):
    """Decides about frames in the order in which they are shown; times are stream seconds."""

    @property
    def due(self) -> float:
        """Time before which no further frame will be kept."""

    @property
    def slack(self) -> float:
        """Seconds after `due` by which a frame of a live stream is still in time."""

    @property
    def keyframes(self) -> bool:
        """Whether it wants key frames only."""

    def keep(self, pts: float, image: VideoFrame | None = None) -> bool:
        """Whether to keep the frame at `pts`, which shows `image`."""

    def resume(self, pts: float) -> None:
        """Go on as if the frame at `pts` had been kept."""


def make_sampler(sampling: Sampling) -> Sampler:
    """The sampler that `sampling` describes."""
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
    """Keeps `fps` frames a second of stream time: the first one at or after every due time.

    Due times are a grid, so that the rate does not drift, however irregular the frames are. A
    frame that comes early by jitter costs nothing: the next one takes its place, and the grid
    stays. After a gap the grid goes on from where the stream is; a step back starts it anew.
    """

    keyframes = False

    def __init__(self, fps: float) -> None:
        self._interval = 1.0 / fps
        self._origin: float | None = None
        self._due = -math.inf
        self._last = 0.0

    @property
    def due(self) -> float:
        """Stream time before which no further frame will be kept, seconds."""
        return self._due - _TOLERANCE

    @property
    def slack(self) -> float:
        """Seconds after `due` by which a frame of a live stream is still in time."""
        return _LATE * self._interval

    def keep(self, pts: float, image: VideoFrame | None = None) -> bool:
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

    def resume(self, pts: float) -> None:
        """Go on as if the frame at `pts` had been kept."""
        self._origin = None
        self.keep(pts)


class KeyframeSampler:
    """Keeps key frames, which are all that it is shown, `min_interval` seconds apart at least."""

    slack = 0.0
    keyframes = True

    def __init__(self, min_interval: float) -> None:
        self._min_interval = min_interval
        self._kept = -math.inf

    @property
    def due(self) -> float:
        """Stream time before which no further frame will be kept, seconds."""
        return self._kept + self._min_interval - _TOLERANCE

    def keep(self, pts: float, image: VideoFrame | None = None) -> bool:
        """Whether to keep the key frame at `pts` seconds."""
        if self._kept - _STEP_BACK <= pts < self.due:
            return False
        self._kept = pts
        return True

    def resume(self, pts: float) -> None:
        """Go on as if the frame at `pts` had been kept."""
        self._kept = pts


class ChangeSampler:
    """Keeps a frame when it differs by `threshold` from the last one kept: after `min_interval`
    seconds at the earliest, and after `max_interval` whatever it shows.

    The difference is that of the luma (0 to 1), averaged over the 2 % of the picture that differ
    most: large for a small thing that moves, next to nothing for the noise of a camera.
    """

    slack = 0.0
    keyframes = False

    def __init__(self, threshold: float, min_interval: float, max_interval: float) -> None:
        self._threshold = threshold
        self._min_interval = min_interval
        self._max_interval = max_interval
        self._kept = self._looked = -math.inf
        self._picture: NDArray[np.float32] | None = None

    @property
    def due(self) -> float:
        """Stream time before which no further frame will be kept, seconds."""
        return max(self._kept + self._min_interval, self._looked + _LOOK) - _TOLERANCE

    def keep(self, pts: float, image: VideoFrame | None = None) -> bool:
        """Whether to keep the frame at `pts` seconds, which shows `image`."""
        if self._kept - _STEP_BACK <= pts < self.due:
            return False
        self._looked = pts
        picture = _cells(image) if image is not None else None
        known = self._picture is not None and picture is not None
        waited = pts - self._kept
        if (
            known
            and 0 <= waited < self._max_interval - _TOLERANCE
            and difference(self._picture, picture) < self._threshold  # type: ignore[arg-type]
        ):
            return False
        self._kept, self._picture = pts, picture
        return True

    def resume(self, pts: float) -> None:
        """Go on as if the frame at `pts` had been kept; nobody knows any more what it showed."""
        self._kept, self._picture = pts, None


def difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Mean absolute difference, 0 to 1, of the 2 % of cells that differ most."""
    cells = np.abs(one - other).ravel()
    return float(np.partition(cells, -_TOP)[-_TOP:].mean())


def _cells(image: VideoFrame) -> NDArray[np.float32]:
    """Mean luma, 0 to 1, of the picture cut into 64 x 36 cells."""
    if image.format.name in {"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "nv12", "gray"}:
        plane = image.planes[0]  # the luma itself: no conversion of the rest
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
        luma = rows[: image.height, : image.width]
    else:
        luma = image.reformat(format="gray", threads=1).to_ndarray().astype(np.uint8, copy=False)
    small = cv2.resize(luma, _CELLS, interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / 255.0
