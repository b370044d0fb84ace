"""Videos on disk: only the frames that are looked at are decoded, found by seeking.

Frame indices are those of the original's loader, in display order. Where it would skip an
unreadable frame, and then fail, the nearest readable frame stands in.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from nvila_core.errors import MediaError
from nvila_core.media.preprocess import to_rgb
from nvila_core.media.video import Video, rate_indices, uniform_indices


class VideoFile(Video):
    """A video file or a directory of images; see `Video.from_path`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise MediaError(f"There is no video at {self.path}; check the path.")
        self.timestamps = self.measures = None
        self.sampled = False

    @property
    def frames(self) -> list[Image.Image]:  # type: ignore[override]
        """Every frame, decoded anew at each use."""
        if self.path.is_dir():
            return [open_image(file) for file in image_files(self.path)]
        with open_video(self.path) as container:
            return [picture(frame) for frame in decode(container)]

    def __len__(self) -> int:
        if self.path.is_dir():
            return len(image_files(self.path))
        with open_video(self.path) as container:
            return len(frame_times(container))

    def sample(self, count: int, fps: float = 0.0) -> list[Image.Image]:
        """At most `count` frames at `fps` a second from the beginning, or evenly spread with `fps`
        0.
        """
        if self.path.is_dir():
            files = image_files(self.path)
            return [open_image(files[i]) for i in uniform_indices(len(files), count)]
        with open_video(self.path) as container:
            times = frame_times(container)
            rate = float(container.streams.video[0].average_rate or 0)
            uniform = fps <= 0 or rate <= 0
            indices = (
                uniform_indices(len(times), count)
                if uniform
                else rate_indices(len(times), rate, count, fps)
            )
            return read_frames(container, times, indices)


def image_files(folder: Path) -> list[Path]:
    """The images of a directory in order of their names."""
    known = Image.registered_extensions()
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in known)
    if not files:
        raise MediaError(
            f"The directory {folder} holds no images; give one with at least one picture."
        )
    return files


def open_image(path: str | Path) -> Image.Image:
    """An RGB picture from a file, not rotated.

    Raises:
        MediaError: not there, or not an image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise MediaError(f"There is no image at {path}; check the path.") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(
            f"The image {path} cannot be read ({error}); give a JPEG, PNG or WebP."
        ) from error


def open_video(path: Path) -> InputContainer:
    """An opened file with a video stream.

    Raises:
        MediaError: FFmpeg cannot read it, or it has no video.
    """
    try:
        container = av.open(str(path), mode="r")
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError(
            f"The video {path} cannot be opened ({error.strerror}); give a video file."
        ) from error
    if not container.streams.video:
        container.close()
        raise MediaError(f"The file {path} has no video stream; give one with pictures in it.")
    container.streams.video[0].thread_type = "AUTO"
    return container


def frame_times(container: InputContainer) -> list[int | None]:
    """Presentation times of all frames in display order, in units of the stream, without decoding.

    A raw stream carries no times; its list holds None.
    """
    try:
        times = [packet.pts for packet in container.demux(video_stream(container)) if packet.size]
    except (av.error.FFmpegError, OSError):
        times = []
    if not times:
        raise MediaError(f"The video {container.name} has no frames; give an intact file.")
    if any(time is None for time in times):
        return [None] * len(times)
    return sorted(times, key=lambda time: time or 0)


def read_frames(
    container: InputContainer, times: Sequence[int | None], indices: Sequence[int]
) -> list[Image.Image]:
    """The frames at `indices`, each distinct one decoded once."""
    seekable = times[0] is not None
    found: dict[int, Image.Image] = {}
    if seekable:
        for index in sorted(set(indices)):
            if (image := frame_at(container, times[index] or 0)) is not None:
                found[index] = image
    if not found:
        found = frames_in_order(container, set(indices), seekable)
    if not found:
        raise MediaError(
            f"No frame of the video {container.name} can be decoded; give an intact file."
        )
    return [found[min(found, key=lambda at: (abs(at - index), at))] for index in indices]


def frame_at(container: InputContainer, time: int) -> Image.Image | None:
    """The first frame shown at `time` or later, or None where it cannot be read."""
    stream = video_stream(container)
    try:
        container.seek(time, stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts >= time:
                return picture(frame)
    except (av.error.FFmpegError, OSError):
        return None
    return None


def frames_in_order(
    container: InputContainer, wanted: set[int], seekable: bool
) -> dict[int, Image.Image]:
    """The wanted frames by counting from the beginning, as far as they can be decoded."""
    if seekable:
        container.seek(0)
        return dict(pick(decode(container), wanted))
    with open_video(Path(container.name)) as fresh:
        return dict(pick(decode(fresh), wanted))


def pick(frames: Iterator[av.VideoFrame], wanted: set[int]) -> Iterator[tuple[int, Image.Image]]:
    """(index, picture) of the wanted frames; the last frame too, should the count have been too
    high.
    """
    last, index = None, -1
    for index, frame in enumerate(frames):
        last = frame
        if index in wanted:
            yield index, picture(frame)
        if index >= max(wanted):
            return
    if last is not None:
        yield index, picture(last)


def decode(container: InputContainer) -> Iterator[av.VideoFrame]:
    """All frames up to the first error."""
    try:
        yield from container.decode(video_stream(container))
    except (av.error.FFmpegError, OSError):
        return


def video_stream(container: InputContainer) -> VideoStream:
    """The first video stream."""
    return container.streams.video[0]


def picture(frame: av.VideoFrame) -> Image.Image:
    """A frame as an RGB image, turned upright by its rotation metadata as the original's loader
    does.
    """
    pixels: NDArray[Any] = frame.to_ndarray(format="rgb24")
    if quarter_turns := round(frame.rotation / 90) % 4:
        pixels = np.ascontiguousarray(np.rot90(pixels, quarter_turns))
    return to_rgb(pixels)
