"""Bring pixels of more than 8 bits to 8, by their range where they fill little of it."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # programs that open no video do without PyAV
    from av.video.frame import VideoFrame

MIN_RANGE_SHARE = 0.25
"""Share of the range of their type that integers must fill to keep their brightness.

Below, they are stretched: a thermal camera stores hundredths of a kelvin, of which a scene fills
two percent, and a sensor of 12 bits fills a sixteenth of 16 bits.
"""

ROWS = 256
"""Rows converted at a time, so that a large picture needs little more memory than itself."""


def to_levels(pixels: NDArray[Any]) -> tuple[NDArray[np.uint8], str | None]:
    """Convert pixels [height, width] or [height, width, channels] of any real dtype to uint8.

    Integers that fill a quarter of their type's range, and floats that fill a quarter of 0 to 1,
    keep their brightness. All others are scaled so that their lowest value is black and their
    highest white; NaN is black.

    Returns:
        The pixels, and the range that became black to white as text, None where none was scaled.
    """
    if pixels.dtype == np.uint8:
        return pixels, None
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255), None
    low, high = _range(pixels)
    floats = pixels.dtype.kind == "f"
    full = 1.0 if floats else float(np.iinfo(pixels.dtype).max)
    natural = low >= 0 and high <= full and high - low >= MIN_RANGE_SHARE * full
    if natural and pixels.dtype != np.int32:  # Pillow widens whatever it can to int32
        start, span = 0.0, full
    else:
        start, span = low, high - low
    out = np.empty(pixels.shape, np.uint8)
    for row in range(0, len(pixels), ROWS):
        part = pixels[row : row + ROWS]
        if natural and pixels.dtype == np.uint16:
            out[row : row + ROWS] = part >> 8  # as Pillow and FFmpeg do
            continue
        if span <= 0:
            out[row : row + ROWS] = 128
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = (part.astype(np.float64) - start) * (255.0 / span)
        out[row : row + ROWS] = np.nan_to_num(scaled, nan=0.0).clip(0, 255).round()
    return out, None if (start, span) == (0.0, full) else f"{low:g} to {high:g}"


def deep_values(frame: "VideoFrame") -> NDArray[Any] | None:
    """Return the values of a video frame whose range says little about what is bright.

    These are grey frames of more than 8 bits, [height, width], and RGB frames of 16 bits or floats,
    [height, width, 3]. Of any other frame, return None. FFmpeg itself would keep the upper 8 bits,
    or clip floats to 0 to 1. YUV keeps its levels: video of 10 and 12 bits fills its range.
    """
    name, components = frame.format.name, frame.format.components
    floats = "f32" in name or "f16" in name
    if frame.format.is_rgb:
        return _deep_colours(frame, floats) if floats or components[0].bits >= 16 else None
    if name.startswith("ya16"):
        return frame.reformat(format="gray16le", threads=1).to_ndarray()
    if len(components) != 1 or components[0].bits <= 8:
        return None
    if floats:
        return frame.to_ndarray().astype(np.float32)
    if name.startswith("gray16"):
        return frame.to_ndarray().astype(np.uint16)
    if not name.startswith("gray"):
        return None
    return frame.reformat(format="gray16le", threads=1).to_ndarray()


def _deep_colours(frame: "VideoFrame", floats: bool) -> NDArray[Any]:
    """Return the values [height, width, 3], red first, without alpha."""
    try:
        pixels = frame.to_ndarray()
    except ValueError:  # PyAV knows no array of this format
        wide = "gbrpf32le" if floats else "rgb48le"
        return frame.reformat(format=wide, threads=1).to_ndarray()
    colours = pixels[..., 2::-1] if frame.format.name.startswith("bgr") else pixels[..., :3]
    return np.ascontiguousarray(colours, np.float32 if floats else np.uint16)


def _range(pixels: NDArray[Any]) -> tuple[float, float]:
    """Return the lowest and the highest finite value; zeros where there is none."""
    lows, highs = [], []
    for row in range(0, len(pixels), ROWS):
        part = pixels[row : row + ROWS]
        if pixels.dtype.kind == "f":
            part = part[np.isfinite(part)]
        if part.size:
            lows.append(float(part.min()))
            highs.append(float(part.max()))
    return (min(lows), max(highs)) if lows else (0.0, 0.0)
