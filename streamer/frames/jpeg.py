"""Convert decoded frames to JPEGs of bounded size, and back."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from nvila_core.media.levels import deep_values, to_levels
from nvila_core.media.orientation import display_matrix, upright

if TYPE_CHECKING:  # model workers do without PyAV
    from av.video.frame import VideoFrame

MAX_SIDE = 1920
"""Pixels of the longer side of a stored frame."""

MAX_STORED_SIDE = 4096
"""Pixels of the longer side of a frame that is decoded; earlier versions stored no larger ones."""

_REDUCTIONS = (8, 4, 2, 1)
"""By how much a JPEG decoder can reduce a picture on the way."""


_LUMA_FIRST = frozenset(
    ("yuv420p", "yuv422p", "yuv444p", "yuvj420p", "yuvj422p", "yuvj444p", "nv12", "gray")
)
"""Formats of video whose first plane has the luma of each pixel in 8 bits."""

_NO_COLOUR = 128
"""Level of the chroma of grey, in every range."""

_FULL_RANGE_LUMA = np.array([[255 / 219, -16 * 255 / 219]])
_FULL_RANGE_CHROMA = np.array([[255 / 224, _NO_COLOUR - _NO_COLOUR * 255 / 224]])
"""What stretches the levels of a plane to 0 to 255, for `cv2.transform`: factor and offset."""

_JPEG_PLANES = frozenset(("yuv420p", "yuvj420p"))
"""Formats whose planes are those of a JPEG of 4:2:0."""

_JPEG_MATRIX = frozenset((2, 5, 6))
"""Numbers of FFmpeg for the matrix of a JPEG, BT.601: unspecified, BT.470 BG and SMPTE 170M."""

_FULL_RANGE = 2
"""Number of FFmpeg for luma from 0 to 255; without it, that of most formats is 16 to 235."""


Luma = tuple[NDArray[np.uint8], bool]
"""Luma of a frame, uint8 [height, width], and whether it goes from 16 to 235 instead of 0 to
255."""


def luma_plane(image: "VideoFrame") -> Luma | None:
    """Return the luma of a frame without copying it.

    Return None if :func:`to_bgr` makes more of the frame than another format: then the luma is not
    that of the picture.
    """
    name, width, height = image.format.name, image.width, image.height
    if name not in _LUMA_FIRST or image.interlaced_frame or max(width, height) > MAX_SIDE:
        return None
    if display_matrix(image) is not None:
        return None
    full = image.color_range == _FULL_RANGE or name.startswith(("yuvj", "gray"))
    return _rows(image.planes[0], width, height), not full


def jpeg_of_planes(image: "VideoFrame", luma: Luma | None, quality: int) -> bytes | None:
    """Encode the planes of a frame as a JPEG, without a detour over BGR; `quality` is 0 to 100, and
    `luma` what :func:`luma_plane` returns of it.

    A JPEG of 4:2:0 has the same planes as most video, but for the range of their levels: it shows
    what a JPEG of :func:`to_bgr` shows, with fewer roundings. Return None if the frame needs more:
    an odd side, the matrix of another standard, other planes, or what :func:`to_bgr` makes of it.
    """
    if luma is None or image.format.name not in _JPEG_PLANES:
        return None
    if image.colorspace not in _JPEG_MATRIX:
        return None
    pixels, video_range = luma
    height, width = pixels.shape
    if width % 2 or height % 2:  # libjpeg-turbo would read beyond the luma
        return None
    chroma = [_rows(plane, width // 2, height // 2) for plane in image.planes[1:]]
    planes: list[Any]
    if video_range:
        planes = [cv2.transform(pixels, _FULL_RANGE_LUMA)]
        planes += [cv2.transform(plane, _FULL_RANGE_CHROMA) for plane in chroma]
    else:
        planes = [np.ascontiguousarray(plane) for plane in (pixels, *chroma)]
    jpeg: bytes = simplejpeg.encode_jpeg_yuv_planes(*planes, quality)
    return jpeg


def _rows(plane: Any, length: int, height: int) -> NDArray[np.uint8]:
    """Return `height` rows of `length` bytes of a plane, without copying it."""
    return np.ndarray((height, length), np.uint8, plane, strides=(plane.line_size, 1))


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
    return _rows(converted.planes[0], 3 * width, height).reshape(height, width, 3)


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
    fits = (n for n in _REDUCTIONS if width // n >= enough[0] and height // n >= enough[1])
    return next(fits, 1)


def from_jpeg(
    jpeg: bytes, width: int, height: int, enough: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode a stored frame of `width` x `height` to RGB uint8 [height, width, 3].

    With `enough`, the frame is decoded at a half, quarter or eighth of its size as long as it
    stays that wide and high: scaling inside the JPEG decoder costs a fraction of full decoding.

    Raises ValueError if the JPEG is damaged, or larger than any stored frame.
    """
    own_height, own_width = _read(simplejpeg.decode_jpeg_header, jpeg)[:2]
    if max(own_height, own_width) > MAX_STORED_SIDE:
        raise ValueError("a picture larger than any frame")
    factor = reduction(width, height, enough)
    picture: NDArray[np.uint8] = _read(
        simplejpeg.decode_jpeg,
        jpeg,
        min_height=own_height // factor,
        min_width=own_width // factor,
        min_factor=factor,
    )
    return picture


def _read(read: Callable[..., Any], jpeg: bytes, **options: Any) -> Any:
    """Return what a function of simplejpeg reads. Raises ValueError for what is not a JPEG."""
    try:
        return read(jpeg, strict=False, **options)
    except (ValueError, KeyError) as error:  # KeyError: colours that no JPEG has
        raise ValueError("not a JPEG") from error


def scale_jpeg(jpeg: bytes, width: int, height: int, size: tuple[int, int], quality: int) -> bytes:
    """Return a stored frame of `width` x `height` as a JPEG of the smaller `size`.

    Raises ValueError if the JPEG is damaged.
    """
    if size[0] >= width and size[1] >= height:
        return jpeg
    image = from_jpeg(jpeg, width, height, enough=size)
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return to_jpeg(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), quality)  # type: ignore[arg-type]
