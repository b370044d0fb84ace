"""Measure the fine detail of decoded frames by octave, and which of it is new.

The planner needs these measures only, no pixels.

Detail is what a 3x3 median removes. A median preserves flat areas and the edges of large things and
removes structures of one or two pixels, such as the strokes of small writing; on an image halved k
times, that is what the (k + 1)th halving would lose. It is averaged over cells of 16x16 pixels, and
only the strongest cells count, so that a small sign in a large plain image does.
"""

from dataclasses import dataclass
from typing import Any, Self

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
        self._previous: _Seen | None = None
        self._buffers: _Buffers | None = None

    def measure(self, picture: Pixels, video_range: bool = False) -> Measures:
        """Measure a frame, and keep a small copy to compare the next frame with.

        Args:
            picture: uint8 [height, width, 3], RGB or BGR, or luma [height, width].
            video_range: whether luma goes from 16 to 235, as in most videos, instead of 0 to 255.
                The measures are about the same.
        """
        gain = 255 / VIDEO_SPAN if video_range else 1.0
        height, width = picture.shape[:2]
        buffers = self._buffers
        if buffers is None or buffers.shape != picture.shape:
            buffers = self._buffers = _Buffers(picture.shape)
        buffers.fill(picture, self._to_luma)
        noise = buffers.subtract_noise(gain) if buffers.octaves else 0.0
        detail = buffers.strengths(buffers.cells)
        seen = _Seen.of(buffers)
        previous, self._previous = self._previous, seen
        if previous is None:
            return Measures(width, height, detail, detail, 1.0)
        change = round(min(1.0, gain * seen.distance(previous) / 255), 5)
        if previous.small.shape != seen.small.shape:
            return Measures(width, height, detail, detail, change)
        light = round(seen.brightness - previous.brightness)
        changed = buffers.comparison.changed(seen.small, previous.small, noise, light, gain)
        if not changed.any():
            return Measures(width, height, detail, (0.0,) * len(detail), change)
        for octave in buffers.octaves:
            cv2.resize(changed, octave.size, octave.weights, 0, 0, cv2.INTER_AREA)
        np.multiply(buffers.cells, buffers.weights, out=buffers.weights)
        return Measures(width, height, detail, buffers.strengths(buffers.weights), change)


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


class _MeansOf4x4:
    """Computes the exact mean of each 4x4 pixels of images of one size, into `out`.

    On bytes, one step of 4 to 1 is slow and rounds.
    """

    def __init__(self, out: Cells) -> None:
        height, width = out.shape
        self._wide = np.empty((4 * height, 4 * width), np.float32)
        self._half = np.empty((2 * height, 2 * width), np.float32)
        self._out: Any = out

    def compute(self, pixels: Pixels) -> None:
        """Fill `out` with the means of uint8 [4 * height, 4 * width]."""
        np.copyto(self._wide, pixels)
        for source, target in ((self._wide, self._half), (self._half, self._out)):
            cv2.resize(source, target.shape[::-1], target, 0, 0, cv2.INTER_AREA)


class Comparison:
    """Finds what differs between two images of one size, uint8 [height, width]."""

    def __init__(self, height: int, width: int) -> None:
        cells = CELL_SIZE >> COMPARISON_HALVINGS
        self._level: Any = np.empty((height, width), np.uint8)
        self._changed: Cells = np.empty((height // 4, width // 4), np.float32)
        self._means = _MeansOf4x4(self._changed) if min(height, width) >= cells else None
        self._whole: Any = self._level[: height // 4 * 4, : width // 4 * 4]

    def changed(
        self, small: Pixels, previous: Pixels, noise: float, light: int, gain: float = 1.0
    ) -> Cells:
        """Return how much an image differs from the previous one, 0 to 1 for each of its 4x4 cells.

        `light` is by how much the whole image is brighter, which does not count. `gain` turns
        differences of the images into those of 0 to 255. The next call overwrites what this one
        returns.
        """
        level, changed = self._level, self._changed
        if light:
            (cv2.add if light > 0 else cv2.subtract)(previous, abs(light), level)  # type: ignore[call-overload]
            previous = level
        cv2.absdiff(small, previous, level)
        if self._means is not None:
            self._means.compute(self._whole)
        else:
            changed = shrink(level.astype(np.float32), (1, 1))
        limit = CHANGE_THRESHOLD + noise
        np.multiply(changed, gain, out=changed)
        np.rint(changed, out=changed)
        np.subtract(changed, limit, out=changed)
        np.divide(changed, limit, out=changed)
        np.maximum(changed, 0, out=changed)
        return np.minimum(changed, 1, out=changed)


def noise_floor(cells: Cells, luma: Pixels, video_range: bool = False) -> float:
    """Return the sensor noise: the strength of the quietest cells.

    Args:
        cells: strength of each cell.
        luma: the image at any scale of at least one pixel for each cell; fastest at exactly one.
        video_range: whether it goes from 16 to 235.
    """
    if luma.shape != cells.shape:
        height, width = cells.shape
        side = min(luma.shape[0] // height, luma.shape[1] // width)  # whole, or shrinking is slow
        luma = shrink(luma[: height * side, : width * side], (width, height))
    low, high = MIN_LUMA, MAX_LUMA
    if video_range:
        low, high = (round(VIDEO_BLACK + level * VIDEO_SPAN / 255) for level in (low, high))
    darkest, brightest, _, _ = cv2.minMaxLoc(luma)
    if low < darkest and brightest < high:  # as nearly always: to select takes longer
        exposed = cells.flatten()
    else:
        exposed = cells[(luma > low) & (luma < high)]
    if len(exposed) < MIN_CELLS**2:
        return 0.0
    place = int(QUIETEST_SHARE * len(exposed))
    exposed.partition(place)
    return min(MAX_NOISE, float(exposed[place]))


class _Strip:
    """Some rows of an octave: halves them, and averages 4x4 pixels of what a median removes.

    Args:
        top, end: the rows; the last strip may end after the octave.
        shape: height and width of the octave.
        half: where the halved rows go.
        quarter: where the averages go; if it is empty, they are not computed.
        lost, once: room for the steps between.
        luma: room for the luma of the rows if they are in colour.
    """

    def __init__(
        self,
        top: int,
        end: int,
        shape: tuple[int, int],
        half: Any,
        quarter: Any,
        lost: Any,
        once: Any,
        luma: Any,
    ) -> None:
        above = min(top, 1)  # a median needs the row above and the row below
        self.rows = slice(top - above, min(end + 1, shape[0]))
        rows = self.rows.stop - self.rows.start
        self.luma = None if luma is None else luma[:rows]
        self._half = half
        self._even = slice(above, above + 2 * half.shape[0]), slice(0, 2 * half.shape[1])
        self._quarter = quarter
        self._lost = lost[: rows * shape[1]].reshape(rows, shape[1])
        height, width = 2 * quarter.shape[0], 2 * quarter.shape[1]
        self._kept = self._lost[above : above + 2 * height, : 2 * width]
        self._once = once[: height * width].reshape(height, width)

    def measure(self, luma: Any) -> None:
        """Halve and measure uint8 [rows, width]."""
        _halve_into(luma[self._even], self._half)
        if self._quarter.size:
            cv2.absdiff(luma, cv2.medianBlur(luma, 3, self._lost), self._lost)
            _halve_into(self._kept, self._once)
            _halve_into(self._once, self._quarter)


def _halve_into(picture: Any, half: Any) -> None:
    cv2.resize(picture, half.shape[::-1], half, 0, 0, cv2.INTER_AREA)


class _Octave:
    """The measures of one octave.

    Args:
        cells: where the mean strength of what a median removes goes, for each cell.
        weights: room for a number for each cell.
        luma: the image that tells how bright each cell is, uint8.
    """

    def __init__(self, cells: Cells, weights: Cells, luma: Pixels) -> None:
        rows, columns = cells.shape
        self.cells = cells
        self.weights: Any = weights
        self.luma = luma
        self.size = (columns, rows)
        self.count = max(1, round(STRONGEST_SHARE * cells.size))
        self.quarter = np.empty((4 * rows, 4 * columns), np.uint8)
        self.means = _MeansOf4x4(cells)


class _Buffers:
    """Everything that frames of one shape are measured in.

    To allocate it, to slice it or to call NumPy for each octave takes about as long as to measure:
    the code between two large steps is never in the processor's caches.

    Attributes:
        shape: of the frames.
        levels: the luma halved once, twice, and so on.
        octaves: those that are measured, finest first.
        cells, weights: those of all octaves, one after the other.
        comparison: finds the cells that changed.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        sizes = [(shape[0], shape[1])]
        while min(sizes[-1]) >= 2 and len(sizes) <= MAX_OCTAVES + 1:
            sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
        self.levels: list[Any] = [np.empty(size, np.uint8) for size in sizes[1:] or sizes]
        grids = [(rows // CELL_SIZE, columns // CELL_SIZE) for rows, columns in sizes]
        grids = [grid for grid in grids[:MAX_OCTAVES] if min(grid) >= MIN_CELLS]
        ends = np.cumsum([0, *(rows * columns for rows, columns in grids)])
        self.cells, self.weights = (np.empty(ends[-1], np.float32) for _ in range(2))
        self._starts = ends[:-1]
        self.octaves = [
            _Octave(
                self.cells[start:end].reshape(grid),
                self.weights[start:end].reshape(grid),
                self.levels[min(number + CELL_HALVINGS, len(self.levels)) - 1],
            )
            for number, (grid, start, end) in enumerate(zip(grids, ends, ends[1:], strict=False))
        ]
        self._strips = self._cut(sizes) if sizes[1:] else []
        self._small = self.levels[min(COMPARISON_HALVINGS, len(self.levels)) - 1]
        self.comparison = Comparison(*self._small.shape)
        large_enough = (x for x in reversed(self.levels) if min(x.shape) >= max(THUMBNAIL_SIZE))
        self._large = next(large_enough, self.levels[0])
        self._large_wide = np.empty(self._large.shape, np.float32)

    def _cut(self, sizes: list[tuple[int, int]]) -> list[list[_Strip]]:
        """Cut each octave into strips that stay in the processor's caches."""
        heights = [
            max(CELL_SIZE, STRIP_PIXELS // columns // CELL_SIZE * CELL_SIZE) for _, columns in sizes
        ]
        room = max(
            min(rows, height + 2) * columns
            for (rows, columns), height in zip(sizes, heights, strict=True)
        )
        lost, once = np.empty(room, np.uint8), np.empty(room // 4 + 1, np.uint8)
        colour = None
        if len(self.shape) == 3:
            colour = np.empty((min(self.shape[0], heights[0] + 2), self.shape[1]), np.uint8)
        octaves = []
        for number, (size, height) in enumerate(zip(sizes[:-1], heights, strict=False)):
            half = self.levels[number]
            quarter = np.empty((0, 0), np.uint8)
            if number < len(self.octaves):
                quarter = self.octaves[number].quarter
            octaves.append(
                [
                    _Strip(
                        top,
                        top + height,
                        size,
                        half[top // 2 : (top + height) // 2],
                        quarter[top // 4 : (top + height) // 4],
                        lost,
                        once,
                        colour if number == 0 else None,
                    )
                    for top in range(0, 2 * len(half), height)
                ]
            )
        return octaves

    def fill(self, picture: Pixels, to_luma: int) -> None:
        """Halve a frame's luma again and again, and measure the cells of each octave; `to_luma` is
        OpenCV's code for the luma of a colour."""
        if not self._strips:  # one row or one column
            self.levels[0][:] = cv2.cvtColor(picture, to_luma) if picture.ndim == 3 else picture
        source: Any = picture
        for strips, half in zip(self._strips, self.levels, strict=False):
            for strip in strips:
                rows = source[strip.rows]
                if strip.luma is not None:
                    rows = cv2.cvtColor(rows, to_luma, strip.luma)
                strip.measure(rows)
            source = half
        for octave in self.octaves:
            octave.means.compute(octave.quarter)

    def subtract_noise(self, gain: float) -> float:
        """Scale the strength of all cells by `gain`, 1 for luma from 0 to 255, and subtract the
        sensor noise from it. Return the noise of the finest octave."""
        cells, video_range = self.cells, gain != 1.0
        if video_range:
            np.multiply(cells, gain, out=cells)
            np.minimum(cells, 255, out=cells)
        floors = [noise_floor(octave.cells, octave.luma, video_range) for octave in self.octaves]
        np.multiply(cells, cells, out=cells)
        for octave, floor in zip(self.octaves, floors, strict=True):
            if floor:
                np.subtract(octave.cells, (NOISE_MARGIN * floor) ** 2, out=octave.cells)
        np.maximum(cells, 0, out=cells)
        np.sqrt(cells, out=cells)
        return floors[0]

    def strengths(self, cells: Cells) -> tuple[float, ...]:
        """Return the mean of the strongest cells of each octave, rounded because it is stored with
        every frame; `cells` are those of all octaves."""
        if not self.octaves:
            return ()
        strengths = []
        strongest = np.maximum.reduceat(cells, self._starts).tolist()
        for octave, start, most in zip(self.octaves, self._starts, strongest, strict=True):
            if octave.count > 1:
                part = cells[start : start + octave.cells.size].copy()
                part.partition(-octave.count)
                most = float(part[-octave.count :].sum()) / octave.count
            strengths.append(round(most, 1))
        return tuple(strengths)

    def small(self) -> Pixels:
        """Return a copy of the image in which changes are found, uint8."""
        copy: Pixels = self._small.copy()
        return copy

    def thumbnail(self) -> Cells:
        """Return the luma thumbnail, float32."""
        np.copyto(self._large_wide, self._large)
        thumbnail: Cells = shrink(self._large_wide, THUMBNAIL_SIZE)
        return thumbnail.copy() if thumbnail is self._large_wide else thumbnail


@dataclass(frozen=True, slots=True)
class _Seen:
    """What is kept of a frame, to compare the next one with.

    Attributes:
        small: its luma, uint8.
        brightness: the mean of `small`.
        thumbnail: its luma thumbnail, float32.
    """

    small: Pixels
    brightness: float
    thumbnail: Cells

    @classmethod
    def of(cls, buffers: _Buffers) -> Self:
        small = buffers.small()
        return cls(small, cv2.mean(small)[0], buffers.thumbnail())

    def distance(self, other: "_Seen") -> float:
        """Return the mean absolute difference of the thumbnails, in levels."""
        difference = self.thumbnail - other.thumbnail
        return float(np.abs(difference, out=difference).mean())
