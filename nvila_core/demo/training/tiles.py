"""Cut frames into tiles as inference does."""

import random

import cv2
import numpy as np
from PIL import Image

from nvila_core.demo.render import Frame
from nvila_core.demo.sampling import TILE_GRID

TILED_SIZE = (336, 252)
"""Frame size that is cut into the tiles of the grid without resizing."""
SMALL_SIZE = (168, 126)
"""Frame size for frames that become one tile: rendering larger ones would take most of the time."""


def squash(frame: Frame, tile: int = 84) -> Frame:
    """Resize a whole frame to one tile, uint8 [tile, tile, 3]."""
    return np.asarray(Image.fromarray(frame).resize((tile, tile), Image.Resampling.BICUBIC))


def cut_frame(frame: Frame, tile: int = 84) -> list[Frame]:
    """Cut a frame into the tiles of the grid, row by row, uint8 [tile, tile, 3] each."""
    columns, rows = TILE_GRID
    if frame.shape[:2] != (tile * rows, tile * columns):
        size = (tile * columns, tile * rows)
        frame = np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))
    return [
        frame[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]
        for row in range(rows)
        for column in range(columns)
    ]


def degrade(frame: Frame, rng: random.Random) -> Frame:
    """Degrade a frame as cameras and codecs do: compress it, and sometimes blur it slightly."""
    if rng.random() < 0.3:
        frame = np.asarray(cv2.GaussianBlur(frame, (3, 3), rng.uniform(0.3, 0.7)), np.uint8)
    quality = rng.randint(55, 95)
    _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
