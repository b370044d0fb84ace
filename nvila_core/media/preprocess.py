"""Convert images to pixel tensors as the published model does: resize, cut into tiles, normalise.

All resizing is Pillow's bicubic on uint8 (fixed-point, deterministic). Source: nvila
specification, section 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nvila_core.errors import MediaError
from nvila_core.media.picture import as_rgb
from nvila_core.resolution.grids import Grid, choose_grid


@dataclass(frozen=True)
class Processor:
    """The SigLIP image processor: resize to `size` x `size`, rescale, then (x - mean) / std."""

    size: int
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale: float = 0.00392156862745098
    resample: int = Image.Resampling.BICUBIC

    @cached_property
    def table(self) -> NDArray[np.float32]:
        """float32 [3, 256]: the normalised value of each uint8 level, to look pixels up in."""
        levels = (np.arange(256, dtype=np.float64) * self.rescale).astype(np.float32)
        mean = np.asarray(self.mean, np.float32)[:, None]
        std = np.asarray(self.std, np.float32)[:, None]
        table: NDArray[np.float32] = (levels[None] - mean) / std
        return table

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        """Convert RGB images of any size to float32 [len(images), 3, size, size]."""
        pixels = np.empty((len(images), self.size, self.size, 3), np.uint8)
        for tile, image in zip(pixels, images, strict=True):
            tile[:] = self.resize(image)
        return self.normalise(pixels)

    def resize(self, image: Image.Image) -> NDArray[np.uint8]:
        """Resize an RGB image of any size to uint8 [size, size, 3]."""
        if image.size != (self.size, self.size):
            image = image.resize((self.size, self.size), Image.Resampling(self.resample))
        return np.asarray(image)

    def normalise(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Normalise uint8 pixels [n, H, W, 3] to float32 [n, 3, H, W]."""
        n, height, width, _ = pixels.shape
        out = np.empty((n, 3, height, width), np.float32)
        for channel in range(3):
            # No level is out of range, and every mode except "clip" copies first.
            np.take(self.table[channel], pixels[..., channel], out=out[:, channel], mode="clip")
        return torch.from_numpy(out)

    def normalise_on_device(self, pixels: Tensor) -> Tensor:
        """Return what `normalise` does, of uint8 pixels [n, H, W, 3] that a GPU holds."""
        table = torch.from_numpy(self.table).to(pixels.device, non_blocking=True)
        return look_up_levels(pixels, table)


def look_up_levels(pixels: Tensor, table: Tensor) -> Tensor:
    """Return float32 [n, 3, H, W]: the values in `Processor.table` of uint8 pixels [n, H, W, 3]."""
    channels = pixels.permute(0, 3, 1, 2)
    values = [table[c].take(channels[:, c].long()) for c in range(3)]
    return torch.stack(values, dim=1)


def to_rgb(image: object) -> Image.Image:
    """Convert a PIL image of any mode or a uint8 array [height, width, 3] to an RGB image.

    A PIL image is turned upright by its EXIF data and laid on white; see `picture.as_rgb`.

    Raises:
        MediaError: the object is of another type or has no pixels.
    """
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise MediaError("The image has no pixels; give one of at least 1x1 pixels.")
        try:
            return as_rgb(image)
        except (OSError, ValueError) as error:
            raise MediaError(
                f"The image cannot be decoded ({error}); give an intact image."
            ) from error
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise MediaError(
                f"An array must be uint8 [height, width, 3], not {image.dtype} {list(image.shape)}."
            )
        return Image.fromarray(image)
    kind = type(image).__name__
    raise MediaError(
        f"An image must be a PIL image or a uint8 array [height, width, 3], not {kind}."
    )


def cut_tiles(image: Image.Image, grid: Grid, size: int) -> list[Image.Image]:
    """Resize an image to a grid and cut it into `size` x `size` tiles, row by row.

    The aspect ratio is not preserved.
    """
    columns, rows = grid
    whole = image.resize((size * columns, size * rows))
    return [
        whole.crop((x * size, y * size, (x + 1) * size, (y + 1) * size))
        for y in range(rows)
        for x in range(columns)
    ]


def grid_tiles(image: Image.Image, grid: Grid, size: int) -> list[Image.Image]:
    """Cut an image into the tiles of a grid; if there are several, add a thumbnail of the whole."""
    tiles = cut_tiles(image, grid, size)
    if len(tiles) > 1:
        tiles.append(image.resize((size, size)))
    return tiles


def dynamic_tiles(
    image: Image.Image, size: int, min_tiles: int, max_tiles: int
) -> list[Image.Image]:
    """Tile an image as NVILA-Lite does: the grid nearest to its aspect ratio, and a thumbnail."""
    return grid_tiles(image, choose_grid(*image.size, size, min_tiles, max_tiles), size)


def s2_tiles(
    image: Image.Image, size: int, scales: Sequence[int], max_tiles: int
) -> tuple[list[Image.Image], Grid]:
    """Tile an image for NVILA's dynamic S2.

    Every scale has a square grid, except the last: its grid is the one nearest to the aspect ratio.

    Returns:
        The tiles, smallest scale first, and the block (rows, columns) of the last scale.
    """
    tiles: list[Image.Image] = []
    for scale in scales[:-1]:
        k = scale // scales[0]
        tiles += cut_tiles(image, (k, k), size)
    min_tiles = (scales[-1] // scales[0]) ** 2
    columns, rows = choose_grid(*image.size, size, min_tiles, max(max_tiles, min_tiles))
    return tiles + cut_tiles(image, (columns, rows), size), (rows, columns)


def pad_to_square(image: Image.Image, mean: Sequence[float]) -> Image.Image:
    """Centre an image on a square of the mean colour (`image_aspect_ratio` "pad")."""
    width, height = image.size
    if width == height:
        return image
    side = max(width, height)
    square = Image.new("RGB", (side, side), tuple(int(255 * m) for m in mean))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
