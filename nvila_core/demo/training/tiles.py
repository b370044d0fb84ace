"""From frames to the tiles that the tower sees, as inference makes them."""

import random

import cv2
import numpy as np
from PIL import Image

from nvila_core.demo.render import Frame
from nvila_core.demo.sampling import TILE_GRID

TILED_SIZE = (336, 252)
"""A frame of this size is cut into the grid's tiles without resizing."""
SMALL_SIZE = (168, 126)
"""Enough for frames that become one tile; rendering larger ones would take most of the time."""


def squash(frame: Frame, tile: int = 84) -> Frame:
    """The whole frame as one tile, uint8 [tile, tile, 3]."""
    return np.asarray(Image.fromarray(frame).resize((tile, tile), Image.Resampling.BICUBIC))


def cut_frame(frame: Frame, tile: int = 84) -> list[Frame]:
    """A frame as tiles of the grid, row-major, uint8 [tile, tile, 3] each."""
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
    """What cameras and codecs do to a picture: compression, and at times a slight blur."""
    if rng.random() < 0.3:
        frame = np.asarray(cv2.GaussianBlur(frame, (3, 3), rng.uniform(0.3, 0.7)), np.uint8)
    quality = rng.randint(55, 95)
    _, data = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
