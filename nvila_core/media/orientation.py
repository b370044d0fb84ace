"""Turn and mirror the frames of a video as its display matrix says."""

from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from numpy.typing import NDArray


def display_matrix(frame: av.VideoFrame) -> NDArray[np.int32] | None:
    """Return the 3x3 display matrix of `frame`; None: it has none."""
    side_data: Any = frame.side_data  # PyAV's stubs know one kind of it only
    for data in side_data:
        if data.type == Type.DISPLAYMATRIX:
            return np.frombuffer(bytes(data), np.int32).reshape(3, 3)
    return None


def upright(pixels: NDArray[Any], matrix: NDArray[np.int32] | None) -> NDArray[Any]:
    """Return `pixels` [height, width, ...] in the orientation to show them in.

    A display matrix maps a stored point (p, q) to the shown point (p a + q c, p b + q d), in the
    notation of FFmpeg's libavutil/display.h. Eight matrices turn by right angles and mirror;
    any other one counts as the nearest of these.
    """
    if matrix is None:
        return pixels
    (a, b), (c, d) = matrix[:2, :2].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        columns, rows = a, d
    else:
        pixels, columns, rows = np.swapaxes(pixels, 0, 1), c, b
    if columns < 0:
        pixels = pixels[:, ::-1]
    if rows < 0:
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)
