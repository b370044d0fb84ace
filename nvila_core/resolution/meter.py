"""Measure the fine detail of decoded frames by octave, and which of it is new.

The planner needs these measures only, no pixels.

Detail is what a 3x3 median removes. A median preserves flat areas and the edges of large things and
removes structures of one or two pixels, such as the strokes of small writing; on an image halved k
times, that is what the (k + 1)th halving would lose. It is averaged over cells of 16x16 pixels, and
only the strongest cells count, so that a small sign in a large plain image does.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from nvila_core.resolution.policy import Measures

CELL_HALVINGS = 4
CELL_SIZE = 2**CELL_HALVINGS
"""Side of a cell, in pixels of its octave."""
MAX_OCTAVES = 6
MIN_CELLS = 3
"""Cells along each side that an octave needs to be measured."""
STRONGEST_SHARE = 0.0025
"""Share of the cells whose mean is the detail of a frame."""
QUIETEST_SHARE = 0.1
"""Quantile of the cells that is the sensor noise: part of every scene is plain."""
NOISE_MARGIN = 1.2
MAX_NOISE = 8.0
"""Limit of the sensor noise, about a standard deviation of 9 levels: stronger cells show detail,
even if no part of the scene is plain."""
MIN_LUMA, MAX_LUMA = 8, 247
"""Cells outside this range of mean luma do not count for the noise, which is clipped there."""
VIDEO_BLACK, VIDEO_SPAN = 16, 219
"""Luma of black in most videos, and the levels from there to white (BT.601, BT.709)."""
CHANGE_THRESHOLD = 3.0
"""Mean difference, 0 to 255, beyond the noise, from which on a cell has changed."""
STRIP_PIXELS = 2**20
"""Pixels per strip, about: with smaller ones, the calls cost more than the faster cache saves."""
THUMBNAIL_SIZE = (32, 24)
"""Width and height of the luma thumbnails whose difference is the change."""
COMPARISON_HALVINGS = 2
"""Number of halvings of the image in which changed cells are detected."""

Pixels = NDArray[np.uint8]
Cells = NDArray[np.float32]


class Meter:
    """Measures the frames of one stream in order. Not thread-safe.

    Args:
        bgr: colour images are BGR, as in OpenCV, instead of RGB.
    """

    def __init__(self, bgr: bool = False) -> None:
        self._to_luma = cv2.COLOR_BGR2GRAY if bgr else cv2.COLOR_RGB2GRAY
        self._previous: tuple[Pixels, Cells] | None = None
        self._buffers = BufferPool()

    def measure(self, picture: Pixels, video_range: bool = False) -> Measures:
        """Measure a frame, and keep a small copy to compare the next frame with.

        Args:
            picture: uint8 [height, width, 3], RGB or BGR, or luma [height, width].
            video_range: whether luma goes from 16 to 235, as in most videos, instead of 0 to 255.
                The measures are about the same.
        """
        gain = 255 / VIDEO_SPAN if video_range else 1.0
        height, width = picture.shape[:2]
        levels: list[Pixels] = []  # halved once, twice, ...
        residues: list[Cells] = []
        level = picture
        while min(level.shape[:2]) >= 2 and len(levels) <= MAX_OCTAVES:
            cells, level = self._octave(level, len(levels))
            levels.append(level)
            if cells is not None:
                residues.append(np.minimum(cells * gain, 255) if video_range else cells)
        levels = levels or [self._luma(picture)]
        octaves, noise = [], 0.0
        for i, cells in enumerate(residues):
            luma = levels[min(i + CELL_HALVINGS, len(levels)) - 1]
            cells, floor = subtract_noise(cells, luma, video_range)
            noise = floor if i == 0 else noise
            octaves.append(cells)
        small = levels[min(COMPARISON_HALVINGS, len(levels)) - 1]
        large_enough = (x for x in reversed(levels) if min(x.shape) >= max(THUMBNAIL_SIZE))
        thumbnail = shrink(next(large_enough, levels[0]).astype(np.float32), THUMBNAIL_SIZE)
        previous, self._previous = self._previous, (small.copy(), thumbnail)
        detail = tuple(strength(cells) for cells in octaves)
        if previous is None:
            return Measures(width, height, detail, detail, 1.0)
        difference = gain * float(np.abs(thumbnail - previous[1]).mean())
        change = round(min(1.0, difference / 255), 5)
        if previous[0].shape != small.shape:
            return Measures(width, height, detail, detail, change)
        changed = changed_cells(small, previous[0], noise, self._buffers, gain)
        if not changed.any():
            return Measures(width, height, detail, (0.0,) * len(detail), change)
        fresh = tuple(strength(cells * shrink(changed, cells.shape[::-1])) for cells in octaves)
        return Measures(width, height, detail, fresh, change)

    def _octave(self, picture: Pixels, number: int) -> tuple[Cells | None, Pixels]:
        """Measure one octave.

        Returns:
            The mean strength of what a median removes, for each whole cell, or None if there would
            be too few cells; and the image's luma at half the size.
        """
        buffers = self._buffers
        rows, columns = picture.shape[:2]
        down, across = rows // CELL_SIZE, columns // CELL_SIZE
        measured = min(down, across) >= MIN_CELLS and number < MAX_OCTAVES
        half = buffers(f"half {number}", rows // 2, columns // 2)
        quarter = buffers("quarter", down * CELL_SIZE // 4, across * CELL_SIZE // 4)
        strip = max(CELL_SIZE, STRIP_PIXELS // columns // CELL_SIZE * CELL_SIZE)
        for top in range(0, 2 * len(half), strip):
            above, end = top - min(top, 1), min(top + strip, CELL_SIZE * down)
            luma = self._luma(picture[above : top + strip + 1])
            inside = luma[top - above :]
            halve(inside[: min(strip, 2 * len(half) - top)], half[top // 2 : (top + strip) // 2])
            if measured and end > top:
                lost = buffers("lost", len(luma), columns)
                cv2.absdiff(luma, cv2.medianBlur(luma, 3, lost), lost)
                lost = lost[top - above : end - above, : CELL_SIZE * across]
                once = buffers("once", len(lost) // 2, lost.shape[1] // 2)
                halve(halve(lost, once), quarter[top // 4 : end // 4])
        return (means_of_4x4(quarter, buffers) if measured else None), half

    def _luma(self, picture: Pixels) -> Pixels:
        """Return the luma uint8 [height, width] of a colour or luma image."""
        if picture.ndim == 2:
            return picture
        return cv2.cvtColor(picture, self._to_luma, self._buffers("luma", *picture.shape[:2]))  # type: ignore[return-value]


def measure(picture: Pixels, before: Pixels | None = None) -> Measures:
    """Measure one frame, and what is new since the frame `before`; see `Meter.measure`."""
    meter = Meter()
    if before is not None:
        meter.measure(before)
    return meter.measure(picture)


def halve(picture: Any, out: Any = None) -> Any:
    """Return an image or cells at half the size, without an odd last row or column."""
    height, width = picture.shape
    picture = picture[: height // 2 * 2, : width // 2 * 2]
    return cv2.resize(picture, (width // 2, height // 2), out, interpolation=cv2.INTER_AREA)


def shrink(picture: Any, size: tuple[int, int]) -> Any:
    """Return an image or cells at a smaller (width, height), each value the mean of an area."""
    if picture.shape == size[::-1]:
        return picture
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


class BufferPool:
    """Image buffers by name, reused: allocating them would take half of the measuring time."""

    def __init__(self) -> None:
        self._buffers: dict[str, NDArray[Any]] = {}

    def __call__(self, name: str, height: int, width: int, dtype: Any = np.uint8) -> Any:
        """Return the uninitialised buffer [height, width] with this name."""
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < height * width:
            buffer = self._buffers[name] = np.empty(height * width, dtype)
        return buffer[: height * width].reshape(height, width)


def means_of_4x4(pixels: Pixels, buffers: BufferPool) -> Cells:
    """Return the exact mean of each 4x4 pixels; on bytes, one step of 4 to 1 is slow and rounds."""
    height, width = pixels.shape
    wide = buffers("wide", height, width, np.float32)
    np.copyto(wide, pixels)
    mean: Cells = halve(halve(wide))
    return mean


def subtract_noise(cells: Cells, luma: Pixels, video_range: bool = False) -> tuple[Cells, float]:
    """Subtract the sensor noise from cells.

    Args:
        cells: strength of each cell; overwritten.
        luma: the image at any scale of at least one pixel for each cell; fastest at exactly one.
        video_range: whether it goes from 16 to 235.

    Returns:
        The cells without noise, and the noise: the strength of the quietest cells.
    """
    if luma.shape != cells.shape:
        height, width = cells.shape
        side = min(luma.shape[0] // height, luma.shape[1] // width)  # whole, or shrinking is slow
        luma = shrink(luma[: height * side, : width * side], (width, height))
    low, high = MIN_LUMA, MAX_LUMA
    if video_range:
        low, high = (round(VIDEO_BLACK + level * VIDEO_SPAN / 255) for level in (low, high))
    exposed = cells[(luma > low) & (luma < high)]
    floor = 0.0
    if len(exposed) >= MIN_CELLS**2:
        place = int(QUIETEST_SHARE * len(exposed))
        floor = min(MAX_NOISE, float(np.partition(exposed, place)[place]))
    energy = cells * cells - (NOISE_MARGIN * floor) ** 2
    return np.sqrt(np.maximum(energy, 0, out=energy), out=energy), floor


def changed_cells(
    small: Pixels, previous: Pixels, noise: float, buffers: BufferPool, gain: float = 1.0
) -> Cells:
    """Return how much an image differs from the previous one, 0 to 1 for each of its 4x4 cells.

    A change of the brightness of the whole image does not count. `gain` turns differences of the
    images into those of 0 to 255.
    """
    light = round(cv2.mean(small)[0] - cv2.mean(previous)[0])
    level: Any = buffers("level", *small.shape)
    (cv2.add if light >= 0 else cv2.subtract)(previous, abs(light), level)  # type: ignore[call-overload]
    cv2.absdiff(small, level, level)
    large = min(level.shape) >= CELL_SIZE >> COMPARISON_HALVINGS
    changed = means_of_4x4(level, buffers) if large else shrink(level.astype(np.float32), (1, 1))
    limit = CHANGE_THRESHOLD + noise
    clipped: Cells = np.clip((np.rint(gain * changed) - limit) / limit, 0, 1)
    return clipped


def strength(cells: Cells) -> float:
    """Return the mean of the strongest cells, rounded because it is stored with every frame."""
    count = round(STRONGEST_SHARE * cells.size)
    if count <= 1:
        return round(float(cells.max()), 1)
    strongest = np.partition(cells, -count, axis=None)[-count:]
    return round(float(strongest.sum()) / count, 1)
