"""Convert decoded frames to JPEGs of bounded size, and back."""

import struct
from collections.abc import Callable
from io import BytesIO
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import JpegImagePlugin

from nvila_core.media.levels import deep_values, to_levels
from nvila_core.media.orientation import display_matrix, upright

if TYPE_CHECKING:  # model workers do without PyAV
    from av.video.frame import VideoFrame

MAX_SIDE = 1920
"""Pixels of the longer side of a stored frame."""

MAX_STORED_SIDE = 4096
"""Pixels of the longer side of a frame that is decoded; earlier versions stored no larger ones."""

_REDUCED = {
    8: cv2.IMREAD_REDUCED_COLOR_8,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    1: cv2.IMREAD_COLOR_RGB,
}


_LUMA_FIRST = frozenset(
    ("yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p", "nv12", "gray")
)
"""Formats of video whose first plane has the luma of each pixel in 8 bits."""

_FULL_RANGE = 2
"""Number of FFmpeg for luma from 0 to 255; without it, that of most formats is 16 to 235."""


def luma_plane(image: "VideoFrame") -> tuple[NDArray[np.uint8], bool] | None:
    """Return the luma uint8 [height, width] of a frame without copying it, and whether it goes from
    16 to 235 instead of 0 to 255.

    Return None if :func:`to_bgr` makes more of the frame than another format: then the luma is not
    that of the picture.
    """
    name, width, height = image.format.name, image.width, image.height
    if name not in _LUMA_FIRST or image.interlaced_frame or max(width, height) > MAX_SIDE:
        return None
    if display_matrix(image) is not None:
        return None
    full = image.color_range == _FULL_RANGE or name.startswith(("yuvj", "gray"))
    return _rows(image, width), not full


def _rows(image: "VideoFrame", length: int) -> NDArray[np.uint8]:
    """Return the first plane, without copying it: rows of `length` bytes."""
    plane: Any = image.planes[0]  # a buffer, which its stubs do not say
    rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)
    return rows[: image.height, :length]


def to_bgr(image: "VideoFrame", on_scaled: Callable[[], None] = lambda: None) -> NDArray[np.uint8]:
    """Convert a frame to upright BGR uint8 [height, width, 3], no side longer than MAX_SIDE.

    It is turned and mirrored as its display matrix says. Of an interlaced frame one field is kept.
    `on_scaled` is called when values of more than 8 bits were scaled by their range.
    """
    scale = min(1.0, MAX_SIDE / max(image.width, image.height))
    width, height = (max(1, round(side * scale)) for side in (image.width, image.height))
    if image.interlaced_frame:
        pixels = cv2.resize(
            _deinterlaced(image, on_scaled), (width, height), interpolation=cv2.INTER_AREA
        )
    else:
        pixels = _to_array(image, width, height, on_scaled)
    return upright(pixels, display_matrix(image))


def _to_array(
    image: "VideoFrame", width: int, height: int, on_scaled: Callable[[], None]
) -> NDArray[np.uint8]:
    values = deep_values(image)
    if values is not None:  # thermal cameras: scaled by their range, else all of one grey
        levels, scaled = to_levels(values)
        if scaled is not None:
            on_scaled()
        small = cv2.resize(levels, (width, height), interpolation=cv2.INTER_AREA)
        code = cv2.COLOR_GRAY2BGR if levels.ndim == 2 else cv2.COLOR_RGB2BGR
        return cv2.cvtColor(small, code)  # type: ignore[return-value]
    # By default a converter has a thread per core, and lives as long as its frame.
    converted = image.reformat(width, height, "bgr24", interpolation="AREA", threads=1)
    return _rows(converted, 3 * width).reshape(height, width, 3)


def _deinterlaced(image: "VideoFrame", on_scaled: Callable[[], None]) -> NDArray[np.uint8]:
    """Return the frame with the rows of its second field interpolated from those of the first.

    The two fields were captured at different moments: whatever moves would show as a comb.
    """
    pixels = _to_array(image, image.width, image.height, on_scaled)
    first = pixels[0::2]
    below = np.concatenate((first[1:], first[-1:]))
    between = cv2.addWeighted(first, 0.5, below, 0.5, 0.0)
    pixels[1::2] = between[: pixels[1::2].shape[0]]
    return pixels


def to_jpeg(bgr: NDArray[np.uint8], quality: int) -> bytes:
    """Encode BGR uint8 [height, width, 3] as a JPEG; `quality` is 0 to 100."""
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def reduction(width: int, height: int, enough: tuple[int, int] | None) -> int:
    """Return by how much :func:`from_jpeg` reduces a frame that has to stay as large as `enough`:
    1, 2, 4 or 8."""
    if enough is None:
        return 1
    fits = (n for n in _REDUCED if width // n >= enough[0] and height // n >= enough[1])
    return next(fits, 1)


def from_jpeg(
    jpeg: bytes, width: int, height: int, enough: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode a stored frame of `width` x `height` to RGB uint8 [height, width, 3].

    With `enough`, the frame is decoded at a half, quarter or eighth of its size as long as it
    stays that wide and high: scaling inside the JPEG decoder costs a fraction of full decoding.

    Raises ValueError if the JPEG is damaged, or larger than any stored frame.
    """
    if max(_size(jpeg)) > MAX_STORED_SIDE:
        raise ValueError("a picture larger than any frame")
    flags = _REDUCED[reduction(width, height, enough)]
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags) if jpeg else None
    if image is None:
        raise ValueError("not a picture")
    return image if flags == cv2.IMREAD_COLOR_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]


def scale_jpeg(jpeg: bytes, width: int, height: int, size: tuple[int, int], quality: int) -> bytes:
    """Return a stored frame of `width` x `height` as a JPEG of the smaller `size`.

    Raises ValueError if the JPEG is damaged.
    """
    if size[0] >= width and size[1] >= height:
        return jpeg
    image = from_jpeg(jpeg, width, height, enough=size)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return to_jpeg(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), quality)  # type: ignore[arg-type]


def _size(jpeg: bytes) -> tuple[int, int]:
    """Return the width and height in a JPEG's header, which is all that is read.

    Raises ValueError for what is not a JPEG.
    """
    try:
        return JpegImagePlugin.JpegImageFile(BytesIO(jpeg)).size
    except (SyntaxError, OSError, ValueError, TypeError, IndexError, struct.error) as error:
        raise ValueError("not a JPEG") from error
