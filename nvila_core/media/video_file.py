"""Read frames of videos on disk by seeking, so that only the frames in use are decoded.

Frame indices are those of the original's loader, in display order. Where the original would skip
an unreadable frame, and then fail, the nearest readable frame replaces it.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from nvila_core.errors import MediaError
from nvila_core.file_kind import HEIC, MAX_PIXELS, describe, file_kind, read_head
from nvila_core.media.levels import deep_values, to_levels
from nvila_core.media.orientation import display_matrix, upright
from nvila_core.media.picture import (
    UNREADABLE,
    as_rgb,
    check_pixels,
    is_animated,
    open_image,
    open_lazily,
    unreadable,
    warn_scaled,
)
from nvila_core.media.preprocess import to_rgb

MAX_CLIP_PIXELS = 600_000_000
"""Pixels of all frames together that a prompt uses; larger frames are reduced to fit.

More than 256 frames of 1920x1080 have.
"""

MAX_THREADED_PIXELS = 16_000_000
"""Pixels of a frame up to which FFmpeg may hold several at once, one for each thread."""


class AnimatedPicture:
    """A frame source for an animated picture that FFmpeg cannot read, such as WebP.

    Raises:
        MediaError: it has too many pixels.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self.path.open("rb") as file:
            image = open_lazily(file, self.path)
            check_pixels(f"The picture {path}", *image.size, MAX_PIXELS)
            self._length = int(getattr(image, "n_frames", 1))

    def __len__(self) -> int:
        return self._length

    def read(self, choose: Callable[[int, float], Sequence[int]]) -> list[Image.Image]:
        """See `FrameSource.read`; each frame of an animation has its own duration."""
        indices = choose(self._length, 0.0)
        frames: dict[int, Image.Image] = {}
        try:
            with self.path.open("rb") as file:
                image = open_lazily(file, self.path)
                for index in sorted(set(indices)):
                    image.seek(index)
                    frames[index] = as_rgb(image.copy(), f"The picture {self.path}")
        except UNREADABLE as error:
            raise unreadable(self.path, error) from error
        return [frames[index] for index in indices]

    def read_all(self) -> list[Image.Image]:
        """Decode every frame."""
        return self.read(lambda total, _: range(total))


def frame_source(path: str | Path) -> "AnimatedPicture | VideoFile":
    """Return the frame source for what the file at `path` is, whatever its name says.

    Raises:
        MediaError: the path does not exist.
    """
    kind = file_kind(read_head(path))
    ffmpeg = kind is None or kind.name in ("a GIF picture", "a PNG picture")
    if not ffmpeg and is_animated(path):
        return AnimatedPicture(path)
    return VideoFile(path)


class VideoFile:
    """A frame source for a video file or a directory of images; decodes only what is read.

    Raises:
        MediaError: the path does not exist.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise MediaError(f"There is no video at {self.path}; check the path.")

    def __len__(self) -> int:
        if self.path.is_dir():
            return len(image_files(self.path))
        with open_video(self.path) as container:
            return len(frame_times(container))

    def read(self, choose: Callable[[int, float], Sequence[int]]) -> list[Image.Image]:
        """See `FrameSource.read`; a directory has no frame rate."""
        if self.path.is_dir():
            files = image_files(self.path)
            return [open_image(files[i]) for i in choose(len(files), 0.0)]
        with open_video(self.path) as container:
            times = frame_times(container)
            rate = float(container.streams.video[0].average_rate or 0)
            return read_frames(container, times, choose(len(times), rate))

    def read_all(self) -> list[Image.Image]:
        """Decode every frame."""
        if self.path.is_dir():
            return [open_image(file) for file in image_files(self.path)]
        with open_video(self.path) as container:
            return [to_image(frame) for frame in decode(container)]


def image_files(folder: Path) -> list[Path]:
    """Return the image files of a directory in order of their names."""
    known = Image.registered_extensions()
    files = sorted(file for file in folder.glob("*") if file.suffix.lower() in known)
    if not files:
        raise MediaError(
            f"The directory {folder} has no images; give a directory with at least one image."
        )
    return files


def open_video(path: Path) -> InputContainer:
    """Open a file that has a video stream.

    Raises:
        MediaError: FFmpeg cannot read the file, or it has no video stream.
    """
    what = describe(path)
    if what is not None and file_kind(read_head(path)) is HEIC:
        raise MediaError(f"The file {path} {what}.")  # FFmpeg would show one of its tiles
    try:
        container = av.open(str(path), mode="r")
    except (av.error.FFmpegError, OSError) as error:
        if what is not None:
            raise MediaError(f"The file {path} {what}.") from error
        raise MediaError(
            f"The video {path} cannot be opened ({error.strerror}); give an intact video file."
        ) from error
    if not container.streams.video:
        container.close()
        raise MediaError(f"The file {path} {what or 'has no video stream; give a video file'}.")
    context = container.streams.video[0].codec_context
    try:
        check_pixels(f"The video {path}", context.width, context.height, MAX_PIXELS)
    except MediaError:
        container.close()
        raise
    context.options = {"max_pixels": str(MAX_PIXELS)}  # its pictures may be larger than it says
    small = context.width * context.height <= MAX_THREADED_PIXELS
    context.thread_type = "AUTO" if small else "NONE"
    if not small:
        context.thread_count = 1
    return container


def frame_times(container: InputContainer) -> list[int | None]:
    """Return the presentation times of all frames in display order, without decoding.

    Times are in units of the stream's time base. They are None for a raw stream, which has none.
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
    """Return the frames at `indices`, decoding each distinct frame once.

    The nearest readable frame replaces one that cannot be decoded.

    Raises:
        MediaError: no frame can be decoded.
    """
    seekable = times[0] is not None
    found: dict[int, Image.Image] = {}
    most = MAX_CLIP_PIXELS // max(1, len(set(indices)))
    if seekable:
        for index in sorted(set(indices)):
            if (image := frame_at(container, times[index] or 0, most)) is not None:
                found[index] = image
    if not found:
        found = frames_in_order(container, set(indices), seekable, most)
    if not found:
        raise MediaError(
            f"No frame of the video {container.name} can be decoded; give an intact file."
        )
    return [found[min(found, key=lambda at: (abs(at - index), at))] for index in indices]


def frame_at(container: InputContainer, time: int, most: int) -> Image.Image | None:
    """Return the first frame shown at `time` or later, or None if it cannot be decoded."""
    stream = video_stream(container)
    try:
        container.seek(time, stream=stream, backward=True)
        for frame in container.decode(stream):
            if frame.pts is not None and frame.pts >= time:
                return to_image(frame, most)
    except (av.error.FFmpegError, OSError):
        return None
    return None


def frames_in_order(
    container: InputContainer, wanted: set[int], seekable: bool, most: int
) -> dict[int, Image.Image]:
    """Return the wanted frames that can be decoded, counting from the beginning."""
    if seekable:
        container.seek(0)
        return dict(wanted_images(decode(container), wanted, most))
    with open_video(Path(container.name)) as fresh:
        return dict(wanted_images(decode(fresh), wanted, most))


def wanted_images(
    frames: Iterator[av.VideoFrame], wanted: set[int], most: int
) -> Iterator[tuple[int, Image.Image]]:
    """Yield (index, image) of the wanted frames.

    Also yields the last frame if the video has fewer frames than its packets promised.
    """
    last, index = None, -1
    for index, frame in enumerate(frames):
        last = frame
        if index in wanted:
            yield index, to_image(frame, most)
        if index >= max(wanted):
            return
    if last is not None:
        yield index, to_image(last, most)


def decode(container: InputContainer) -> Iterator[av.VideoFrame]:
    """Yield all frames up to the first error."""
    try:
        yield from container.decode(video_stream(container))
    except (av.error.FFmpegError, OSError):
        return


def video_stream(container: InputContainer) -> VideoStream:
    """Return the first video stream."""
    return container.streams.video[0]


def to_image(frame: av.VideoFrame, most: int = MAX_PIXELS) -> Image.Image:
    """Convert a frame to an RGB image of at most about `most` pixels.

    It is turned and mirrored as its display matrix says. Grey values of more than 8 bits, and
    colours of 16 bits or floats, are scaled by their range, and a MediaWarning says so.
    """
    values = deep_values(frame)
    pixels: NDArray[Any]
    if values is None:
        pixels = _fitting(frame, most).to_ndarray(format="rgb24")
    else:
        levels, scaled = to_levels(values)
        warn_scaled("The video", scaled)
        pixels = np.repeat(levels[..., None], 3, axis=2) if levels.ndim == 2 else levels
    return to_rgb(upright(pixels, display_matrix(frame)))


def _fitting(frame: av.VideoFrame, most: int) -> av.VideoFrame:
    """Return the frame, reduced if it has more than `most` pixels."""
    scale = (most / max(1, frame.width * frame.height)) ** 0.5
    if scale >= 1:
        return frame
    width, height = (max(1, int(side * scale)) for side in (frame.width, frame.height))
    return frame.reformat(width, height, "rgb24", interpolation="AREA")
