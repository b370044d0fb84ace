"""Tiling rules and the processor, without the recordings."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nvila_core.errors import MediaError
from nvila_core.media.preprocess import Processor, dynamic_tiles, pad_to_square, s2_tiles, to_rgb
from nvila_core.resolution.grids import candidate_grids, choose_grid


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((1920, 1080), (4, 2)),
        ((3840, 2160), (4, 2)),
        ((854, 480), (2, 1)),
        ((640, 480), (4, 3)),
        ((448, 448), (1, 1)),
        ((512, 512), (1, 1)),
        ((634, 634), (2, 2)),
        ((896, 896), (2, 2)),
        ((1344, 1344), (3, 3)),
        ((1080, 1920), (2, 4)),
        ((10_000, 1), (12, 1)),
        ((1, 10_000), (1, 12)),
    ],
)
def test_published_grids(size: tuple[int, int], grid: tuple[int, int]) -> None:
    assert choose_grid(*size, 448, 1, 12) == grid


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 12))
def test_grid_is_the_nearest_one(width: int, height: int, max_tiles: int) -> None:
    columns, rows = choose_grid(width, height, 448, 1, max_tiles)
    nearest = min(abs(width / height - i / j) for i, j in candidate_grids(1, max_tiles))
    assert columns * rows <= max_tiles
    assert abs(width / height - columns / rows) == nearest


def test_tiles_come_row_by_row_with_the_thumbnail_last() -> None:
    # given an image of 4 x 2 flat squares
    levels = np.arange(8, dtype=np.uint8).reshape(2, 4) * 30
    image = Image.fromarray(np.kron(levels, np.ones((112, 112), np.uint8))).convert("RGB")
    # when it is tiled
    tiles = dynamic_tiles(image, 112, 1, 12)
    # then the middle of each tile shows which tile it is
    assert [np.asarray(tile)[56, 56, 0] for tile in tiles[:8]] == [
        0,
        30,
        60,
        90,
        120,
        150,
        180,
        210,
    ]
    assert len(tiles) == 9
    assert tiles[8].size == (112, 112)
    assert len(dynamic_tiles(image.crop((0, 0, 100, 100)), 112, 1, 12)) == 1


@pytest.mark.parametrize(
    ("size", "block", "count"),
    [((640, 360), (3, 4), 17), ((448, 448), (3, 3), 14), ((1080, 1920), (5, 2), 15)],
)
def test_dynamic_s2(size: tuple[int, int], block: tuple[int, int], count: int) -> None:
    tiles, found = s2_tiles(Image.new("RGB", size), 448, (448, 896, 1344), 12)
    assert (found, len(tiles)) == (block, count)


def test_processor_matches_its_formula() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = Processor(16)([Image.fromarray(levels)])
    expected = (
        (levels.astype(np.float64) * 0.00392156862745098).astype(np.float32) - np.float32(0.5)
    ) / np.float32(0.5)
    assert pixels.dtype == torch.float32
    np.testing.assert_array_equal(pixels[0].permute(1, 2, 0).numpy(), expected)


def test_pad_centres_on_the_mean_colour() -> None:
    padded = pad_to_square(Image.new("RGB", (4, 2), "red"), (0.5, 0.5, 0.5))
    assert padded.size == (4, 4)
    assert [padded.getpixel((0, y)) for y in range(4)] == [
        (127, 127, 127),
        (255, 0, 0),
        (255, 0, 0),
        (127, 127, 127),
    ]


def test_transparent_pictures_are_laid_on_white() -> None:
    assert to_rgb(Image.new("RGBA", (1, 1), (10, 20, 30, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert to_rgb(Image.new("RGBA", (1, 1), (10, 20, 30, 255))).getpixel((0, 0)) == (10, 20, 30)
    assert to_rgb(Image.new("L", (1, 1), 9)).getpixel((0, 0)) == (9, 9, 9)


@pytest.mark.parametrize(
    "bad",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        Image.new("RGB", (0, 4)),
        b"jpeg",
        None,
    ],
)
def test_what_is_not_an_image(bad: object) -> None:
    with pytest.raises(MediaError):
        to_rgb(bad)


def test_pixels_are_normalised_alike_on_the_host_and_on_a_device() -> None:
    processor = Processor(4, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7))
    pixels = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    on_device = processor.normalise_on_device(torch.from_numpy(pixels))
    assert torch.equal(on_device, processor.normalise(pixels))
