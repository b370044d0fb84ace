"""A video as the model sees it: its frames, and which of them are looked at.

Sampling follows the original's inference loader: numpy's round(linspace(0, count - 1, n)), half to
even, so a short video repeats frames and always gives n of them. Source: nvila specification,
section 6.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nvila_core.errors import MediaError
from nvila_core.media.preprocess import to_rgb
from nvila_core.resolution.policy import Measures, thin


class Video:
    """Frames in order of time.

    Args:
        frames: PIL images or uint8 arrays [height, width, 3], at least one.
        timestamps: seconds, one for each frame; kept for the caller, the model does not see them.
        sampled: the frames are already the ones to look at, so a short video is not filled up by
            repeating frames as the original does.
        measures: of each frame, for a resolution policy, so that they need not be measured again;
            frames that were decoded at a smaller scale have those of the original.
    """

    def __init__(
        self,
        frames: Sequence[Any],
        timestamps: Sequence[float] | None = None,
        *,
        sampled: bool = False,
        measures: Sequence[Measures] | None = None,
    ) -> None:
        if len(frames) == 0:
            raise MediaError("The video has no frames; give at least one.")
        if timestamps is not None and len(timestamps) != len(frames):
            raise MediaError(
                f"The video has {len(frames)} frames but {len(timestamps)} timestamps."
            )
        if measures is not None and len(measures) != len(frames):
            raise MediaError(f"The video has {len(frames)} frames but {len(measures)} measures.")
        self.frames = list(frames)
        self.timestamps = None if timestamps is None else list(timestamps)
        self.sampled = sampled
        self.measures = None if measures is None else list(measures)

    def __len__(self) -> int:
        return len(self.frames)

    def sample(self, count: int, fps: float = 0.0) -> list[Image.Image]:
        """The RGB frames to look at: `count` of them, evenly spread from the first to the last.

        `fps` is for videos read from a file and has no effect here.
        """
        del fps
        return [to_rgb(self.frames[i]) for i in self._indices(count)]

    def sample_measures(self, count: int) -> list[Measures] | None:
        """Measures of what `sample` gives, where they are known."""
        return None if self.measures is None else thin(self.measures, self._indices(count))

    def _indices(self, count: int) -> Sequence[int]:
        total = len(self.frames)
        return range(total) if self.sampled and total <= count else uniform_indices(total, count)

    @staticmethod
    def from_path(path: str | Path) -> "Video":
        """A video file that FFmpeg can decode, or a directory of images in order of their names.

        Frames are read when a prompt is prepared, and only those that are looked at.

        Raises:
            MediaError: nothing is there.
        """
        from nvila_core.media.video_file import VideoFile

        return VideoFile(path)


def uniform_indices(total: int, count: int) -> list[int]:
    """`count` indices from 0 to total - 1, evenly spread, rounded half to even."""
    return [int(i) for i in np.round(np.linspace(0, total - 1, count))]


def rate_indices(total: int, video_fps: float, count: int, fps: float) -> list[int]:
    """At most `count` indices, `fps` a second from the beginning of a video of `video_fps`."""
    times = np.arange(0, total / video_fps, 1 / fps)[:count]
    return [int(t * video_fps) for t in times]
