"""Videos: frames in memory or on disk, and the selection of those that a prompt uses.

Sampling follows the original's inference loader: numpy's round(linspace(0, count - 1, n)), half to
even, so a short video repeats frames and always gives n of them. Source: nvila specification,
section 6.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from nvila_core.errors import MediaError
from nvila_core.media.preprocess import to_rgb
from nvila_core.resolution.policy import Measures, subsample

ChooseIndices = Callable[[int, float], Sequence[int]]
"""Returns indices into a video, given its number of frames and its frame rate (0: unknown)."""


@runtime_checkable
class FrameSource(Protocol):
    """Frames of a video in order of time, decoded on demand."""

    def __len__(self) -> int:
        """Count the frames."""
        ...

    def read(self, choose: ChooseIndices) -> list[Image.Image]:
        """Return the frames at the indices that `choose` returns, as RGB images."""
        ...

    def read_all(self) -> list[Any]:
        """Return every frame."""
        ...


class FrameList:
    """A frame source for frames in memory, converted to RGB when they are read."""

    def __init__(self, frames: Sequence[Any]) -> None:
        if len(frames) == 0:
            raise MediaError("The video has no frames; give at least one.")
        self.frames = list(frames)

    def __len__(self) -> int:
        return len(self.frames)

    def read(self, choose: ChooseIndices) -> list[Image.Image]:
        """See `FrameSource.read`; the frame rate is unknown."""
        return [to_rgb(self.frames[i]) for i in choose(len(self.frames), 0.0)]

    def read_all(self) -> list[Any]:
        """Return the frames as they were given."""
        return self.frames


class Video:
    """Frames in order of time.

    Args:
        frames: PIL images or uint8 arrays [height, width, 3], at least one; or a source that
            decodes them on demand.
        timestamps: seconds, one for each frame; kept for the caller, the model does not see them.
        sampled: use every frame of a video that has at most the wanted number of frames, instead of
            repeating frames to fill it up as the original does.
        measures: one for each frame, for a resolution policy, so that the frames need not be
            measured again. For frames that were decoded at a smaller scale, these are the measures
            of the originals.

    Raises:
        MediaError: there are no frames, or not as many timestamps or measures as frames.
    """

    def __init__(
        self,
        frames: Sequence[Any] | FrameSource,
        timestamps: Sequence[float] | None = None,
        *,
        sampled: bool = False,
        measures: Sequence[Measures] | None = None,
    ) -> None:
        # a list first: asking whether an object follows a protocol is slow
        if not isinstance(frames, list) and isinstance(frames, FrameSource):
            self.source: FrameSource = frames
        else:
            self.source = FrameList(frames)
        if timestamps is not None and len(timestamps) != len(self):
            raise MediaError(f"The video has {len(self)} frames but {len(timestamps)} timestamps.")
        if measures is not None and len(measures) != len(self):
            raise MediaError(f"The video has {len(self)} frames but {len(measures)} measures.")
        self.timestamps = None if timestamps is None else list(timestamps)
        self.sampled = sampled
        self.measures = None if measures is None else list(measures)

    @staticmethod
    def from_path(path: str | Path) -> "Video":
        """Open a video file that FFmpeg can decode, an animated picture, or a directory of images
        in order of their names.

        Frames are decoded when a prompt is prepared, and only those that the prompt uses.

        Raises:
            MediaError: the path does not exist.
        """
        from nvila_core.media.video_file import frame_source  # imports PyAV

        return Video(frame_source(path))

    def __len__(self) -> int:
        return len(self.source)

    @property
    def frames(self) -> list[Any]:
        """Every frame; a video on disk is decoded at each access."""
        return self.source.read_all()

    def sample(self, count: int, fps: float = 0.0) -> list[Image.Image]:
        """Return the frames that a prompt uses, as RGB images.

        Args:
            count: number of frames, evenly spaced from the first to the last.
            fps: instead, at most `count` frames at this rate from the beginning; 0: evenly spaced.
                Ignored where the frame rate of the video is unknown.
        """

        def choose(total: int, rate: float) -> Sequence[int]:
            if fps > 0 and rate > 0:
                return rate_indices(total, rate, count, fps)
            return self._spaced_indices(total, count)

        return self.source.read(choose)

    def sample_measures(self, count: int) -> list[Measures] | None:
        """Return the measures of the frames that `sample` returns; None: not known."""
        if self.measures is None:
            return None
        return subsample(self.measures, self._spaced_indices(len(self.measures), count))

    def _spaced_indices(self, total: int, count: int) -> Sequence[int]:
        return range(total) if self.sampled and total <= count else uniform_indices(total, count)


def uniform_indices(total: int, count: int) -> list[int]:
    """Return `count` evenly spaced indices from 0 to total - 1, rounded half to even."""
    return [int(i) for i in np.round(np.linspace(0, total - 1, count))]


def rate_indices(total: int, video_fps: float, count: int, fps: float) -> list[int]:
    """Return at most `count` indices, `fps` a second from the beginning of a `video_fps` video."""
    times = np.arange(0, total / video_fps, 1 / fps)[:count]
    return [int(t * video_fps) for t in times]
