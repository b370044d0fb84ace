"""Turn and mirror the frames of a video as its display matrix says."""

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # programs that open no video do without PyAV
    from av.video.frame import VideoFrame


def display_matrix(frame: "VideoFrame") -> NDArray[np.int32] | None:
    """Return the 3x3 display matrix of `frame`; None: it has none."""
    side_data, kind = _side_data()
    # Not `frame.side_data`: the frame and what that returns refer to each other, so the picture and
    # its decoder's pool of pictures would stay until Python looks for rings of objects.
    for data in side_data(frame):
        if data.type == kind:
            return np.frombuffer(bytes(data), np.int32).reshape(3, 3)
    return None


@cache
def _side_data() -> tuple[Any, Any]:
    """Return the constructor of a frame's side data, and the kind that is a display matrix. To
    import them for each frame takes longer than to look."""
    from av.sidedata.sidedata import SideDataContainer, Type

    return SideDataContainer, Type.DISPLAYMATRIX


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
