"""`Meter` measures images with known detail, noise and changes."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nvila_core import Meter, measure
from nvila_core.demo.render import render_clip
from nvila_core.demo.sampling import FIRST_EVALUATION_SEED, sample_scene
from nvila_core.resolution.grids import SINGLE_TILE
from nvila_core.resolution.meter import MAX_OCTAVES

TILE = 448


def scene(width: int = 1280, height: int = 720) -> np.ndarray:
    """Return an image of large plain shapes, uint8 [height, width, 3]."""
    picture = np.full((height, width, 3), 110, np.uint8)
    cv2.rectangle(picture, (width // 5, height // 3), (width // 2, height - 40), (200, 60, 50), -1)
    cv2.circle(picture, (3 * width // 4, height // 2), height // 5, (40, 90, 190), -1)
    return picture


def with_text(picture: np.ndarray, text: str = "Ward 14-27 exit B, no entry", size: float = 0.7):
    """Return a copy with a line of small writing."""
    written = picture.copy()
    cv2.putText(written, text, (60, 80), cv2.FONT_HERSHEY_SIMPLEX, size, (245, 245, 245), 1)
    return written


def noisy(picture: np.ndarray, deviation: float, seed: int = 0) -> np.ndarray:
    """Return a copy with sensor noise."""
    noise = np.random.default_rng(seed).normal(0, deviation, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def test_small_writing_is_detail_and_large_shapes_are_not() -> None:
    plain, written = measure(scene()), measure(with_text(scene()))

    assert max(plain.detail) < 1
    assert written.loss(SINGLE_TILE, TILE) > 5 * plain.loss(SINGLE_TILE, TILE) + 4


def test_detail_is_found_at_its_octave() -> None:
    # given stripes of one pixel in the middle of a plain image, and the same image twice as large
    fine = np.full((480, 640), 100, np.uint8)
    fine[200:280, 300:380:2] = 220
    coarse = np.full((960, 1280), 100, np.uint8)
    coarse[400:560, 600:760] = cv2.resize(
        fine[200:280, 300:380], (160, 160), interpolation=cv2.INTER_NEAREST
    )

    first, second = measure(fine).detail, measure(coarse).detail

    assert np.argmax(first) == 0
    assert np.argmax(second) == 1
    assert second[1] == pytest.approx(first[0], rel=0.1)


@pytest.mark.parametrize("deviation", [1, 3, 6, 9])
def test_noise_is_neither_detail_nor_change(deviation: float) -> None:
    before, now = (noisy(scene(), deviation, seed) for seed in (1, 2))

    seen = measure(now, before)

    assert max(seen.detail) < 3
    assert seen.fresh == (0.0,) * len(seen.fresh)
    assert seen.change < 0.005


def test_noise_does_not_hide_writing() -> None:
    clean, rough = measure(with_text(scene())), measure(noisy(with_text(scene()), 5))
    assert rough.loss(SINGLE_TILE, TILE) == pytest.approx(clean.loss(SINGLE_TILE, TILE), rel=0.3)


def test_noise_is_measured_where_it_is_not_clipped() -> None:
    # given a night sky, entirely black, above a street with noise
    night = noisy(np.full((720, 1280), 90, np.uint8), 6)
    night[:300] = 0
    assert max(measure(night).detail) < 3


def test_only_what_changed_is_fresh() -> None:
    # given writing that stays, and a second line that appears
    before = with_text(scene())
    now = before.copy()
    cv2.putText(now, "Lorry 4711", (900, 600), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (250, 250, 250), 1)

    same, more, gone = measure(before, before), measure(now, before), measure(before, now)

    assert (same.change, max(same.fresh)) == (0.0, 0.0)
    assert 0 < more.change < 0.01
    assert more.fresh_loss(SINGLE_TILE, TILE) > 3
    assert more.fresh_loss(SINGLE_TILE, TILE) < more.loss(SINGLE_TILE, TILE)
    assert gone.fresh_loss(SINGLE_TILE, TILE) < 1  # nothing is left to read there


def test_a_large_moving_shape_is_a_change_without_detail() -> None:
    now = scene()
    now[100:300, 50:200] = (250, 250, 0)
    seen = measure(now, scene())
    assert seen.change > 0.01
    assert max(seen.fresh) < 1


def test_a_change_of_brightness_is_not_fresh_detail() -> None:
    before = with_text(scene())
    brighter = cv2.add(before, np.array((14, 14, 14, 0), float)).astype(np.uint8)
    assert max(measure(brighter, before).fresh) == 0
    assert measure(brighter, before).change > 0.04


def test_change_is_the_mean_difference_of_the_luma() -> None:
    meter = Meter()
    black, white = np.zeros((90, 120, 3), np.uint8), np.full((90, 120, 3), 255, np.uint8)
    half = black.copy()
    half[:, :60] = 255
    assert meter.measure(black).change == 1.0  # nothing before it
    assert meter.measure(black).change == 0.0
    assert meter.measure(white).change == pytest.approx(1.0, abs=0.01)
    assert meter.measure(half).change == pytest.approx(0.5, abs=0.03)


def test_after_a_change_of_size_all_detail_is_fresh() -> None:
    meter = Meter()
    meter.measure(with_text(scene()))
    seen = meter.measure(with_text(scene(640, 360)))
    assert seen.change < 0.02
    assert seen.fresh == seen.detail


def test_bgr_images_give_the_same_measures() -> None:
    rgb = with_text(scene())
    assert Meter(bgr=True).measure(rgb[..., ::-1].copy()) == Meter().measure(rgb)
    assert measure(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)) == measure(rgb)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 400), st.integers(1, 300), st.booleans())
def test_any_size_can_be_measured(width: int, height: int, colour: bool) -> None:
    shape = (height, width, 3) if colour else (height, width)
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    seen = measure(picture, picture)

    assert (seen.width, seen.height) == (width, height)
    assert len(seen.detail) == len(seen.fresh) <= MAX_OCTAVES
    assert all(0 <= value <= 255 for value in seen.detail)
    assert not any(seen.fresh)


@pytest.mark.parametrize("size", [(4, 16), (16, 4), (5, 19), (96, 64)])
def test_a_picture_of_any_size_may_become_brighter_or_darker(size: tuple[int, int]) -> None:
    dark, light = (np.full(size, level, np.uint8) for level in (40, 90))

    for now, before in ((light, dark), (dark, light)):
        seen = measure(now, before)

        assert seen.change == pytest.approx(50 / 255, abs=0.001)
        assert not any(seen.fresh)


def detail_by_definition(luma: np.ndarray) -> list[float]:
    """Return the detail of each octave as the module describes it, without strips or buffers."""

    def half(picture: np.ndarray) -> np.ndarray:
        rows, columns = (side // 2 * 2 for side in picture.shape)
        size = (columns // 2, rows // 2)
        return cv2.resize(picture[:rows, :columns], size, interpolation=cv2.INTER_AREA)

    octaves = [luma]
    while min(octaves[-1].shape) >= 2:
        octaves.append(half(octaves[-1]))
    detail = []
    for number, picture in enumerate(octaves[:MAX_OCTAVES]):
        rows, columns = (side // 16 for side in picture.shape)
        if min(rows, columns) < 3:
            break
        lost = cv2.absdiff(picture, cv2.medianBlur(picture, 3))[: 16 * rows, : 16 * columns]
        cells = half(half(half(half(lost)).astype(np.float32)))
        light = octaves[number + 4]
        exposed = np.sort(cells[(light > 8) & (light < 247)])
        noise = min(8.0, exposed[len(exposed) // 10]) if len(exposed) >= 9 else 0.0
        cells = np.sqrt(np.maximum(cells**2 - (1.2 * noise) ** 2, 0))
        strongest = np.sort(cells, axis=None)[-max(1, round(0.0025 * cells.size)) :]
        detail.append(round(float(strongest.mean()), 1))
    return detail


@pytest.mark.parametrize("size", [(640, 480), (1918, 1081), (337, 901), (48, 50), (47, 300)])
@pytest.mark.parametrize("deviation", [0, 4])
def test_detail_is_what_its_definition_says(size: tuple[int, int], deviation: float) -> None:
    # given writing, noise, and a part that is too dark to show noise
    picture = noisy(with_text(scene(*size)), deviation)[..., 1].copy()
    picture[: size[1] // 4] = 0

    seen = measure(picture)

    assert seen.detail == pytest.approx(detail_by_definition(picture), abs=0.1)


def test_measures_do_not_depend_on_earlier_frames() -> None:
    frames = render_clip(sample_scene(FIRST_EVALUATION_SEED, (0.0, 1.0)), (0.0, 1.0))
    used, fresh = Meter(), Meter()
    for picture in (noisy(scene(1920, 1080), 9), frames[1]):  # fill its buffers with other images
        used.measure(picture)
    again = [used.measure(frame) for frame in frames]
    assert [fresh.measure(frame).detail for frame in frames] == [seen.detail for seen in again]
    assert again[1] == measure(frames[1], frames[0])
