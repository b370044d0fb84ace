"""Measure the fine detail of decoded frames by octave, and which of it is new.

The planner needs these measures only, no pixels.

Detail is what a 3x3 median removes. A median preserves flat areas and the edges of large things and
removes structures of one or two pixels, such as the strokes of small writing; on an image halved k
times, that is what the (k + 1)th halving would lose. It is averaged over cells of 16x16 pixels, and
only the strongest cells count, so that a small sign in a large plain image does.
"""

import itertools
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

from nvila_core.resolution.policy import Measures

CELL_HALVINGS = 4
CELL_SIZE = 1 << CELL_HALVINGS
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
_EXPOSED = (
    (MIN_LUMA, MAX_LUMA),
    tuple(round(VIDEO_BLACK + level * VIDEO_SPAN / 255) for level in (MIN_LUMA, MAX_LUMA)),
)
"""The same for luma from 0 to 255, and for luma from 16 to 235."""
CHANGE_THRESHOLD = 3.0
"""Mean difference, 0 to 255, beyond the noise, from which on a cell has changed."""
STRIP_PIXELS = 2**20
"""Pixels per strip, about: with smaller ones, the calls cost more than the faster cache saves."""
THUMBNAIL_SIZE = (32, 24)
"""Width and height of the luma thumbnails whose difference is the change."""
_THUMBNAIL_CELLS = np.float32(THUMBNAIL_SIZE[0] * THUMBNAIL_SIZE[1])
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
        seen = _Seen.of(buffers)
        previous, self._previous = self._previous, seen
        if previous is None:
            (detail,) = buffers.strengths()
            return Measures(width, height, detail, detail, 1.0)
        change = round(min(1.0, gain * seen.distance(previous) / 255), 5)
        if previous.small.shape != seen.small.shape:
            (detail,) = buffers.strengths()
            return Measures(width, height, detail, detail, change)
        light = round(seen.brightness - previous.brightness)
        changed = buffers.comparison.changed(seen.small, previous.small, noise, light, gain)
        if not np.count_nonzero(changed):
            (detail,) = buffers.strengths()
            return Measures(width, height, detail, (0.0,) * len(detail), change)
        detail, fresh = buffers.strengths(changed)
        return Measures(width, height, detail, fresh, change)


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
        self._half = _Halving(self._wide, np.empty((2 * height, 2 * width), np.float32))
        self._out = _Halving(self._half.half, out)

    def compute(self, pixels: Pixels) -> None:
        """Fill `out` with the means of uint8 [4 * height, 4 * width]."""
        np.copyto(self._wide, pixels)
        self._half.compute()
        self._out.compute()


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
            # not `cv2.add`, which takes a number for an image of four pixels in one column
            previous = cv2.addWeighted(previous, 1.0, previous, 0.0, light, level)  # type: ignore[assignment]
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
    low, high = _EXPOSED[video_range]
    exposed = cells[(luma > low) & (luma < high)]
    if len(exposed) < MIN_CELLS**2:
        return 0.0
    np.negative(exposed, out=exposed)
    return _quietest(exposed, _place_of_quietest(len(exposed)))


def _place_of_quietest(count: int) -> int:
    """Return the place of the noise among so many negative strengths, in ascending order."""
    return count - 1 - int(QUIETEST_SHARE * count)


def _quietest(negative: Cells, place: int) -> float:
    """Return the noise by the negative strengths of cells, which are put into another order.

    Many cells are 0, and NumPy takes ten times as long to select among numbers of which many are
    the smallest.
    """
    negative.partition(place)
    return min(MAX_NOISE, -negative.item(place))


class _Halving:
    """Halves `picture`, without an odd last row or column, into `half`."""

    def __init__(self, picture: Any, half: Any) -> None:
        height, width = half.shape
        self.half = half
        self._even = picture[: 2 * height, : 2 * width]
        self._size = width, height

    def compute(self) -> None:
        """Fill `half`."""
        cv2.resize(self._even, self._size, self.half, 0, 0, cv2.INTER_AREA)


class _Strip:
    """Some rows of a frame: halves their luma, and averages 4x4 pixels of what a median removes.

    Args:
        top, end: the rows; the last strip may end after the frame.
        shape: height and width of the frame.
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
        self._half_size = half.shape[1], half.shape[0]
        self._even = slice(above, above + 2 * half.shape[0]), slice(0, 2 * half.shape[1])
        self._measured = quarter.size > 0
        self._lost = lost[: rows * shape[1]].reshape(rows, shape[1])
        height, width = 2 * quarter.shape[0], 2 * quarter.shape[1]
        self._once = _Halving(self._lost[above:], once[: height * width].reshape(height, width))
        self._quarter = _Halving(self._once.half, quarter)

    def measure(self, luma: Any) -> None:
        """Halve and measure uint8 [rows, width]."""
        cv2.resize(luma[self._even], self._half_size, self._half, 0, 0, cv2.INTER_AREA)
        if self._measured:
            cv2.absdiff(luma, cv2.medianBlur(luma, 3, self._lost), self._lost)
            self._once.compute()
            self._quarter.compute()


def _whole_cells(pixels: int) -> int:
    """Return a side of an image, rounded up to whole cells."""
    return -(-pixels // CELL_SIZE) * CELL_SIZE


class _Coarse:
    """All octaves but the finest, side by side in one image: most steps take one call for all.

    Args:
        sizes: height and width of the frame halved once, twice, and so on.

    Attributes:
        shape: height and width of the image, whole cells.
        levels: where each octave goes: the frame halved once, twice, and so on.
        places: row and column of each octave in the image, in whole cells.
    """

    def __init__(self, sizes: list[tuple[int, int]]) -> None:
        self.places = [(0, 0)]  # the finest at the top, the others in a row below it
        height, width = (_whole_cells(side) for side in sizes[0])
        below = 0
        for _, columns in sizes[1:]:
            self.places.append((height // CELL_SIZE, below // CELL_SIZE))
            below += _whole_cells(columns)
        if sizes[1:]:
            height += _whole_cells(sizes[1][0])
        self.shape = height, max(width, below)
        self._sizes = sizes
        self._luma: Any = np.zeros(self.shape, np.uint8)
        self.levels = self._views(self._luma)

    def use(self, quarter: Any, lost: Any, once: Any) -> None:
        """Take the arrays for :meth:`measure`: `quarter` for the averages of 4x4 pixels, and room
        for the steps before."""
        height, width = self.shape
        self._lost = lost[: height * width].reshape(self.shape)
        self._medians = list(zip(self.levels, self._views(self._lost), strict=True))
        halved = once[: height * width // 4].reshape(height // 2, width // 2)
        self._once = _Halving(self._lost, halved)
        self._quarter = _Halving(halved, quarter)

    def _views(self, image: Any) -> list[Any]:
        return [
            image[CELL_SIZE * row :, CELL_SIZE * column :][:height, :width]
            for (row, column), (height, width) in zip(self.places, self._sizes, strict=True)
        ]

    def measure(self) -> None:
        """Average 4x4 pixels of what a median removes from each octave."""
        for luma, lost in self._medians:
            cv2.medianBlur(luma, 3, lost)
        cv2.absdiff(self._luma, self._lost, self._lost)
        self._once.compute()
        self._quarter.compute()


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
        self._room = weights.reshape(-1)
        self._place = _place_of_quietest(cells.size)

    def noise_of_weights(self) -> float:
        """Return the noise by the negative strengths in `weights`, which are put into another
        order."""
        return _quietest(self._room, self._place)


class _Buffers:
    """Everything that frames of one shape are measured in.

    To allocate it, to slice it or to call NumPy for each octave takes about as long as to measure:
    the code between two large steps is never in the processor's caches.

    Attributes:
        shape: of the frames.
        octaves: those that are measured, finest first.
        comparison: finds the cells that changed.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.shape = shape
        sizes = [(shape[0], shape[1])]
        while min(sizes[-1]) >= 2 and len(sizes) <= MAX_OCTAVES + 1:
            sizes.append((sizes[-1][0] // 2, sizes[-1][1] // 2))
        grids = [(rows // CELL_SIZE, columns // CELL_SIZE) for rows, columns in sizes]
        grids = [grid for grid in grids[:MAX_OCTAVES] if min(grid) >= MIN_CELLS]
        self._coarse = _Coarse(sizes[1 : len(grids)]) if grids[1:] else None
        coarse = self._coarse.levels if self._coarse is not None else []
        # the luma halved once, twice, and so on
        self._levels: list[Any] = [
            *coarse,
            *(np.empty(size, np.uint8) for size in (sizes[1:] or sizes)[len(coarse) :]),
        ]
        ends = np.cumsum([0, *(rows * columns for rows, columns in grids)])
        # for all octaves, one after the other
        self._both = np.empty((2, ends[-1]), np.float32)
        self._cells, self._weights = self._both
        self._starts = ends[:-1]
        self.octaves = [
            _Octave(
                self._cells[start:end].reshape(grid),
                self._weights[start:end].reshape(grid),
                self._levels[min(number + CELL_HALVINGS, len(self._levels)) - 1],
            )
            for number, (grid, start, end) in enumerate(zip(grids, ends, ends[1:], strict=False))
        ]
        self._place_cells(grids)
        self._strips = self._cut(sizes) if sizes[1:] else []
        self._small = self._levels[min(COMPARISON_HALVINGS, len(self._levels)) - 1]
        self.comparison = Comparison(*self._small.shape)
        large_enough = (x for x in reversed(self._levels) if min(x.shape) >= max(THUMBNAIL_SIZE))
        self._large = next(large_enough, self._levels[0])
        self._large_wide = np.empty(self._large.shape, np.float32)
        halvings = [_Halving(*pair) for pair in itertools.pairwise(self._levels)]
        needed = max(CELL_HALVINGS, COMPARISON_HALVINGS, len(grids)) - 1
        # the coarsest levels only tell how bright the cells of the coarsest octaves are
        self._halvings, self._rarely_needed = halvings[:needed], halvings[needed:]

    def _place_cells(self, grids: list[tuple[int, int]]) -> None:
        """Put the cells of all octaves into one image, of which :class:`_MeansOf4x4` makes them in
        one go: those of the finest octave on the left, the others on its right."""
        rows, columns = grids[0] if grids else (0, 0)
        places, height, width = [(0, 0)], rows, columns
        if self._coarse is not None:
            places += [(row, columns + column) for row, column in self._coarse.places]
            height = max(rows, self._coarse.shape[0] // CELL_SIZE)
            width += self._coarse.shape[1] // CELL_SIZE
        means = np.empty((height, width), np.float32)
        cells = np.arange(means.size).reshape(means.shape)
        self._order = np.concatenate(
            [
                np.empty(0, np.intp),
                *(
                    cells[top : top + high, left : left + wide].reshape(-1)
                    for (top, left), (high, wide) in zip(places, grids, strict=False)
                ),
            ]
        )
        self._flat_means = means.reshape(-1)
        self._means = _MeansOf4x4(means)
        # averages of 4x4 pixels
        self._quarters: Any = np.zeros((4 * height, 4 * width), np.uint8)
        self._quarter = self._quarters[: 4 * rows, : 4 * columns]

    def _cut(self, sizes: list[tuple[int, int]]) -> list[_Strip]:
        """Cut frames into strips that stay in the processor's caches."""
        rows, columns = sizes[0]
        height = max(CELL_SIZE, STRIP_PIXELS // columns // CELL_SIZE * CELL_SIZE)
        room = min(rows, height + 2) * columns
        if self._coarse is not None:
            room = max(room, self._coarse.shape[0] * self._coarse.shape[1])
        lost, once = np.zeros(room, np.uint8), np.empty(room // 4 + 1, np.uint8)
        if self._coarse is not None:
            high, wide = (side // 4 for side in self._coarse.shape)
            left = self._quarter.shape[1]
            self._coarse.use(self._quarters[:high, left : left + wide], lost, once)
        colour = None
        if len(self.shape) == 3:
            colour = np.empty((min(rows, height + 2), columns), np.uint8)
        half, quarter = self._levels[0], self._quarter
        return [
            _Strip(
                top,
                top + height,
                sizes[0],
                half[top // 2 : (top + height) // 2],
                quarter[top // 4 : (top + height) // 4],
                lost,
                once,
                colour,
            )
            for top in range(0, 2 * len(half), height)
        ]

    def fill(self, picture: Pixels, to_luma: int) -> None:
        """Halve a frame's luma again and again, and measure the cells of each octave; `to_luma` is
        OpenCV's code for the luma of a colour."""
        if not self._strips:  # one row or one column
            luma = cv2.cvtColor(picture, to_luma) if picture.ndim == 3 else picture
            self._levels[0][:] = luma
        for strip in self._strips:
            rows: Any = picture[strip.rows]
            if strip.luma is not None:
                rows = cv2.cvtColor(rows, to_luma, strip.luma)
            strip.measure(rows)
        for halving in self._halvings:
            halving.compute()
        if self._coarse is not None:
            self._coarse.measure()
        if self.octaves:
            self._means.compute(self._quarters)
            self._flat_means.take(self._order, out=self._cells, mode="clip")

    def subtract_noise(self, gain: float) -> float:
        """Scale the strength of all cells by `gain`, 1 for luma from 0 to 255, and subtract the
        sensor noise from it. Return the noise of the finest octave."""
        cells, video_range = self._cells, gain != 1.0
        if video_range:
            np.multiply(cells, gain, out=cells)
            np.minimum(cells, 255, out=cells)
        floors = self._noise_floors(video_range)
        np.multiply(cells, cells, out=cells)
        for octave, floor in zip(self.octaves, floors, strict=True):
            if floor:
                np.subtract(octave.cells, (NOISE_MARGIN * floor) ** 2, out=octave.cells)
        np.maximum(cells, 0, out=cells)
        np.sqrt(cells, out=cells)
        return floors[0]

    def _noise_floors(self, video_range: bool) -> list[float]:
        """Return the sensor noise of each octave."""
        low, high = _EXPOSED[video_range]
        darkest, brightest, _, _ = cv2.minMaxLoc(self.octaves[0].luma)
        # As nearly always: to select cells takes longer. Coarser octaves have no darker or brighter
        # cells, because those are means of these.
        if low < darkest and brightest < high:
            np.negative(self._cells, out=self._weights)
            return [octave.noise_of_weights() for octave in self.octaves]
        for halving in self._rarely_needed:
            halving.compute()
        return [noise_floor(octave.cells, octave.luma, video_range) for octave in self.octaves]

    def strengths(self, changed: Cells | None = None) -> list[tuple[float, ...]]:
        """Return the mean of the strongest cells of each octave, rounded because it is stored with
        every frame. With `changed`, 0 to 1 for each cell that :class:`Comparison` knows, return
        also that of the cells that changed."""
        kinds = self._both if changed is not None else self._both[:1]
        if not self.octaves:
            return [() for _ in kinds]
        if changed is not None:
            for octave in self.octaves:
                cv2.resize(changed, octave.size, octave.weights, 0, 0, cv2.INTER_AREA)
            np.multiply(self._cells, self._weights, out=self._weights)
        strongest = np.maximum.reduceat(kinds, self._starts, axis=1)
        means = strongest.tolist()
        for number, (octave, start) in enumerate(zip(self.octaves, self._starts, strict=True)):
            if octave.count > 1:
                negative = np.negative(kinds[:, start : start + octave.cells.size])
                negative.partition(octave.count - 1)  # see `_quietest`
                sums = np.add.reduce(negative[:, : octave.count], axis=1).tolist()
                for kind, total in zip(means, sums, strict=True):
                    kind[number] = abs(total) / octave.count
        return [tuple([round(mean, 1) for mean in kind]) for kind in means]

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
        difference = cv2.absdiff(self.thumbnail, other.thumbnail)
        return float(np.add.reduce(difference, axis=None) / _THUMBNAIL_CELLS)
