"""Measures of a decoded frame: fine detail by octave, and what of it is new. Cheap: the planner
needs no pixels afterwards.

Detail is what a 3x3 median takes away. It leaves a flat area or the edge of a large thing alone and
removes what is a pixel or two wide, strokes of small writing above all; on a picture halved k times
that is what the (k + 1)th halving would lose. Means over cells of 16x16 pixels, of which the
strongest count, so that a small sign in a large plain picture does.
"""

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from .resolution import Measures

CELL = 16
"""Pixels along a cell, of the picture at its octave."""
FEWEST_CELLS = 3
"""Cells along each side that an octave must have to be measured."""
OCTAVES = 6
STRONGEST = 0.0025
"""Share of all cells whose mean is the detail of a frame."""
QUIETEST = 0.1
"""Cells up to this share show how strong the sensor's noise is: something in view is plain."""
NOISE_MARGIN = 1.2
MOST_NOISE = 8.0
"""A cell that is busier than this is not noise, even where nothing is plain: a deviation of 9."""
DARK, BRIGHT = 8, 247
"""Cells outside of this mean luma say nothing of the noise, which is cut off there."""
CHANGED = 3.0
"""A cell has changed from this mean difference on (of 255), beside what noise can do."""

STRIP = 128
"""Rows at a time, which stay in the processor's cache; a multiple of CELL."""

THUMBNAIL = (32, 24)
"""Width and height of the luma pictures whose difference is the change."""

COMPARED = 2
"""Halvings of the picture in which changed cells are looked for."""

Picture = NDArray[np.uint8]
Cells = NDArray[np.float32]


class Meter:
    """Measures the frames of one stream one after another.

    Args:
        bgr: colour pictures are BGR, as OpenCV has them, not RGB.
    """

    def __init__(self, bgr: bool = False) -> None:
        self._to_luma = cv2.COLOR_BGR2GRAY if bgr else cv2.COLOR_RGB2GRAY
        self._before: tuple[Picture, Cells] | None = None
        self._room = Room()

    def measure(self, picture: Picture) -> Measures:
        """Measure a frame and keep a small picture of it to compare the next one with.

        Args:
            picture: uint8 [height, width, 3], RGB (or BGR, as the meter was told), or
                [height, width], luma.
        """
        height, width = picture.shape[:2]
        levels: list[Picture] = []  # halved once, twice, ...
        residues: list[Cells] = []
        level = picture
        while min(level.shape[:2]) >= 2 and len(levels) <= OCTAVES:
            cells, level = self._octave(level, len(levels))
            levels.append(level)
            if min(cells.shape) >= FEWEST_CELLS and len(residues) < OCTAVES:
                residues.append(cells)
        levels = levels or [self._luma(picture)]
        octaves, noise = [], 0.0
        for i, cells in enumerate(residues):
            cells, floor = clean(cells, levels[i + 1])
            noise = floor if i == 0 else noise
            octaves.append(cells)
        small = levels[min(COMPARED, len(levels)) - 1]
        large_enough = (x for x in reversed(levels) if min(x.shape) >= max(THUMBNAIL))
        thumbnail = shrink(next(large_enough, levels[0]).astype(np.float32), THUMBNAIL)
        before, self._before = self._before, (small.copy(), thumbnail)
        detail = tuple(strength(cells) for cells in octaves)
        if before is None:
            return Measures(width, height, detail, detail, 1.0)
        change = round(float(np.abs(thumbnail - before[1]).mean()) / 255, 5)
        if before[0].shape != small.shape:
            return Measures(width, height, detail, detail, change)
        moved = moving(small, before[0], noise)
        if not moved.any():
            return Measures(width, height, detail, (0.0,) * len(detail), change)
        fresh = tuple(strength(cells * shrink(moved, cells.shape[::-1])) for cells in octaves)
        return Measures(width, height, detail, fresh, change)

    def _octave(self, picture: Picture, number: int) -> tuple[Cells, Picture]:
        """Mean strength of what a median takes away, for each whole cell, and the picture's luma
        at half of its size.
        """
        room = self._room
        rows, columns = picture.shape[:2]
        height, width = rows - rows % CELL, columns - columns % CELL
        cells = np.empty((height // CELL, width // CELL), np.float32)
        half = room(f"half {number}", rows // 2, columns // 2)
        for top in range(0, 2 * len(half), STRIP):
            above, end = top - min(top, 1), min(top + STRIP, height)
            luma = self._luma(picture[above : top + STRIP + 1])
            count = min(STRIP, 2 * len(half) - top)
            halve(luma[top - above :][:count], half[top // 2 :][: count // 2])
            if end > top and width:
                lost = room("lost", len(luma), columns)
                cv2.absdiff(luma, cv2.medianBlur(luma, 3, lost), lost)
                quarter = halve(halve(lost[top - above : end - above, :width])).astype(np.float32)
                size = (width // CELL, (end - top) // CELL)
                cells[top // CELL : end // CELL] = shrink(quarter, size)
        return cells, half

    def _luma(self, picture: Picture) -> Picture:
        """The luma uint8 [height, width] of a picture that may have colours."""
        if picture.ndim == 2:
            return picture
        return cv2.cvtColor(picture, self._to_luma, self._room("luma", *picture.shape[:2]))  # type: ignore[return-value]


def measure(picture: Picture, before: Picture | None = None) -> Measures:
    """Measures of one frame, and of what is new since the frame `before`; see `Meter.measure`."""
    meter = Meter()
    if before is not None:
        meter.measure(before)
    return meter.measure(picture)


def halve(picture: Picture, out: Picture | None = None) -> Picture:
    """A picture at half of its size; an odd row or column at the end is left out."""
    height, width = (side // 2 for side in picture.shape)
    picture = picture[: 2 * height, : 2 * width]
    return cv2.resize(picture, (width, height), out, interpolation=cv2.INTER_AREA)  # type: ignore[return-value]


def shrink(picture: Any, size: tuple[int, int]) -> Any:
    """A picture or cells at another (width, height), every value a mean over an area."""
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


class Room:
    """Memory for pictures by name, used again: asking the system for it takes half of the time."""

    def __init__(self) -> None:
        self._kept: dict[str, Picture] = {}

    def __call__(self, name: str, height: int, width: int) -> Picture:
        kept = self._kept.get(name)
        if kept is None or len(kept) < height * width:
            kept = self._kept[name] = np.empty(height * width, np.uint8)
        return kept[: height * width].reshape(height, width)


def clean(cells: Cells, luma: Picture) -> tuple[Cells, float]:
    """Cells less the noise of the sensor, and that noise: the strength of the quietest cells.

    `luma` is the picture at any scale at which a cell has a pixel.
    """
    height, width = cells.shape
    side = min(luma.shape[0] // height, luma.shape[1] // width)  # whole, or shrinking is slow
    means = shrink(luma[: height * side, : width * side], (width, height))
    exposed = cells[(means > DARK) & (means < BRIGHT)]
    floor = 0.0
    if len(exposed) >= FEWEST_CELLS**2:
        place = int(QUIETEST * len(exposed))
        floor = min(MOST_NOISE, float(np.partition(exposed, place)[place]))
    energy = cells * cells - (NOISE_MARGIN * floor) ** 2
    return np.sqrt(np.maximum(energy, 0, out=energy), out=energy), floor


def moving(small: Picture, before: Picture, noise: float) -> Cells:
    """Where a picture differs from the one before, 0 to 1 for each of its 4x4 cells.

    A change of the light of the whole picture is none.
    """
    light = round(cv2.mean(small)[0] - cv2.mean(before)[0])
    level = cv2.add(before, light) if light >= 0 else cv2.subtract(before, -light)  # type: ignore[call-overload]
    cell = CELL >> COMPARED
    height, width = (max(1, side // cell) for side in small.shape)
    difference = cv2.absdiff(small, level)[: height * cell, : width * cell]
    limit = CHANGED + noise
    moved = (shrink(difference, (width, height)).astype(np.float32) - limit) / limit
    clipped: Cells = np.clip(moved, 0, 1, out=moved)
    return clipped


def strength(cells: Cells) -> float:
    """Mean of the strongest cells, rounded: it is written down with every frame."""
    count = max(1, round(STRONGEST * cells.size))
    strongest = np.partition(cells.ravel(), -count)[-count:]
    return round(float(strongest.mean()), 1)
