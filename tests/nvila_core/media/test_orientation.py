"""Display matrices of videos: all eight turns and mirrorings, from real files."""

import struct
from itertools import product
from pathlib import Path

import av
import numpy as np
import pytest

from nvila_core.media.video_file import to_image
from streamer.frames.jpeg import to_bgr
from tests.support.videos import write_video

ONE = 1 << 16
IDENTITY = struct.pack(">9i", ONE, 0, 0, 0, ONE, 0, 0, 0, 1 << 30)
MATRICES = [(a, 0, 0, d) for a, d in product((1, -1), repeat=2)] + [
    (0, b, c, 0) for b, c in product((1, -1), repeat=2)
]

CORNERS = {(0, 0): (220, 30, 30), (1, 0): (30, 220, 30), (0, 1): (30, 30, 220), (1, 1): (220,) * 3}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An MP4 file whose picture has a colour in each corner."""
    picture = np.full((96, 160, 3), 100, np.uint8)
    for (right, low), colour in CORNERS.items():
        picture[low * 48 : low * 48 + 48, right * 80 : right * 80 + 80] = colour
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(path, times=[0.0], width=160, height=96, pictures=[picture])
    return path.read_bytes()


@pytest.mark.parametrize("matrix", MATRICES)
def test_a_picture_is_shown_as_its_display_matrix_says(
    tmp_path: Path, plain: bytes, matrix: tuple[int, int, int, int]
) -> None:
    # given a file with another matrix in its track header
    a, b, c, d = matrix
    place = plain.index(IDENTITY, plain.index(b"tkhd"))
    changed = struct.pack(">9i", a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)
    path = tmp_path / "v.mp4"
    path.write_bytes(plain[:place] + changed + plain[place + len(changed) :])
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))

    shown = [np.asarray(to_image(frame)), to_bgr(frame)[..., ::-1]]

    # then every corner is where the matrix maps it
    for pixels in shown:
        height, width = pixels.shape[:2]
        assert (width, height) == ((160, 96) if a else (96, 160))
        for (right, low), colour in CORNERS.items():
            p, q = 2 * right - 1, 2 * low - 1
            x, y = p * a + q * c, p * b + q * d
            seen = pixels[height // 4 * (2 + y), width // 4 * (2 + x)]
            assert np.abs(seen.astype(int) - colour).max() < 40
