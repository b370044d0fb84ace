"""Convert decoded frames to JPEGs of bounded size, and back."""

import cv2
import numpy as np
from av.video.frame import VideoFrame
from numpy.typing import NDArray

MAX_SIDE = 1920
"""Pixels of the longer side of a stored frame."""

_REDUCED = (
    (8, cv2.IMREAD_REDUCED_COLOR_8),
    (4, cv2.IMREAD_REDUCED_COLOR_4),
    (2, cv2.IMREAD_REDUCED_COLOR_2),
)

_TURNS = {
    90: cv2.ROTATE_90_COUNTERCLOCKWISE,
    180: cv2.ROTATE_180,
    270: cv2.ROTATE_90_CLOCKWISE,
}


def to_bgr(image: VideoFrame) -> NDArray[np.uint8]:
    """Convert a frame to upright BGR uint8 [height, width, 3], no side longer than MAX_SIDE."""
    scale = min(1.0, MAX_SIDE / max(image.width, image.height))
    width, height = (max(1, round(side * scale)) for side in (image.width, image.height))
    # By default a converter has a thread per core, and lives as long as its frame.
    converted = image.reformat(width, height, "bgr24", interpolation="AREA", threads=1)
    pixels = converted.to_ndarray()
    turn = _TURNS.get(round(image.rotation / 90) * 90 % 360)
    return cv2.rotate(pixels, turn) if turn is not None else pixels  # type: ignore[return-value]


def to_jpeg(bgr: NDArray[np.uint8], quality: int) -> bytes:
    """Encode BGR uint8 [height, width, 3] as a JPEG; `quality` is 0 to 100."""
    _, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return data.tobytes()


def from_jpeg(
    jpeg: bytes, width: int, height: int, enough: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Decode a stored frame of `width` x `height` to RGB uint8 [height, width, 3].

    With `enough`, the frame is decoded at a half, quarter or eighth of its size as long as it
    stays that wide and high: scaling inside the JPEG decoder costs a fraction of full decoding.

    Raises ValueError if the JPEG is damaged.
    """
    flags = cv2.IMREAD_COLOR_RGB
    for factor, reduced in _REDUCED:
        if enough and width // factor >= enough[0] and height // factor >= enough[1]:
            flags = reduced
            break
    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), flags) if jpeg else None
    if image is None:
        raise ValueError("not a picture")
    return image if flags == cv2.IMREAD_COLOR_RGB else cv2.cvtColor(image, cv2.COLOR_BGR2RGB)  # type: ignore[return-value]
