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

from nvila_core.resolution.policy import Measures

HALVINGS = 4
CELL = 2**HALVINGS
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

STRIP = 2**20
"""Pixels at a time, about: in smaller strips the calls cost more than a faster cache saves."""

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
            if cells is not None:
                residues.append(cells)
        levels = levels or [self._luma(picture)]
        octaves, noise = [], 0.0
        for i, cells in enumerate(residues):
            cells, floor = clean(cells, levels[min(i + HALVINGS, len(levels)) - 1])
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
        moved = moving(small, before[0], noise, self._room)
        if not moved.any():
            return Measures(width, height, detail, (0.0,) * len(detail), change)
        fresh = tuple(strength(cells * shrink(moved, cells.shape[::-1])) for cells in octaves)
        return Measures(width, height, detail, fresh, change)

    def _octave(self, picture: Picture, number: int) -> tuple[Cells | None, Picture]:
        """Mean strength of what a median takes away, for each whole cell, and the picture's luma
        at half of its size. No cells where they would be too few.
        """
        room = self._room
        rows, columns = picture.shape[:2]
        down, across = rows // CELL, columns // CELL
        measured = min(down, across) >= FEWEST_CELLS and number < OCTAVES
        half = room(f"half {number}", rows // 2, columns // 2)
        quarter = room("quarter", down * CELL // 4, across * CELL // 4)
        strip = max(CELL, STRIP // columns // CELL * CELL)
        for top in range(0, 2 * len(half), strip):
            above, end = top - min(top, 1), min(top + strip, CELL * down)
            luma = self._luma(picture[above : top + strip + 1])
            inside = luma[top - above :]
            halve(inside[: min(strip, 2 * len(half) - top)], half[top // 2 : (top + strip) // 2])
            if measured and end > top:
                lost = room("lost", len(luma), columns)
                cv2.absdiff(luma, cv2.medianBlur(luma, 3, lost), lost)
                lost = lost[top - above : end - above, : CELL * across]
                once = room("once", len(lost) // 2, lost.shape[1] // 2)
                halve(halve(lost, once), quarter[top // 4 : end // 4])
        return (means(quarter, room) if measured else None), half

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


def halve(picture: Any, out: Any = None) -> Any:
    """A picture or cells at half of its size; an odd row or column at the end is left out."""
    height, width = picture.shape
    picture = picture[: height // 2 * 2, : width // 2 * 2]
    return cv2.resize(picture, (width // 2, height // 2), out, interpolation=cv2.INTER_AREA)


def shrink(picture: Any, size: tuple[int, int]) -> Any:
    """A picture or cells at another (width, height), every value a mean over an area."""
    if picture.shape == size[::-1]:
        return picture
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


class Room:
    """Memory for pictures by name, used again: asking the system for it takes half of the time."""

    def __init__(self) -> None:
        self._kept: dict[str, NDArray[Any]] = {}

    def __call__(self, name: str, height: int, width: int, dtype: Any = np.uint8) -> Any:
        kept = self._kept.get(name)
        if kept is None or len(kept) < height * width:
            kept = self._kept[name] = np.empty(height * width, dtype)
        return kept[: height * width].reshape(height, width)


def means(quarters: Picture, room: Room) -> Cells:
    """Means of each 4x4 pixels, exactly: for bytes, 4 to 1 at once is slow and rounds."""
    height, width = quarters.shape
    wide = room("wide", height, width, np.float32)
    np.copyto(wide, quarters)
    mean: Cells = halve(halve(wide))
    return mean


def clean(cells: Cells, luma: Picture) -> tuple[Cells, float]:
    """Cells less the noise of the sensor, and that noise: the strength of the quietest cells.

    `luma` is the picture at any scale at which a cell has a pixel; soonest done where it is one.
    """
    if luma.shape != cells.shape:
        height, width = cells.shape
        side = min(luma.shape[0] // height, luma.shape[1] // width)  # whole, or shrinking is slow
        luma = shrink(luma[: height * side, : width * side], (width, height))
    exposed = cells[(luma > DARK) & (luma < BRIGHT)]
    floor = 0.0
    if len(exposed) >= FEWEST_CELLS**2:
        place = int(QUIETEST * len(exposed))
        floor = min(MOST_NOISE, float(np.partition(exposed, place)[place]))
    energy = cells * cells - (NOISE_MARGIN * floor) ** 2
    return np.sqrt(np.maximum(energy, 0, out=energy), out=energy), floor


def moving(small: Picture, before: Picture, noise: float, room: Room) -> Cells:
    """Where a picture differs from the one before, 0 to 1 for each of its 4x4 cells.

    A change of the light of the whole picture is none.
    """
    light = round(cv2.mean(small)[0] - cv2.mean(before)[0])
    level: Any = room("level", *small.shape)
    (cv2.add if light >= 0 else cv2.subtract)(before, abs(light), level)  # type: ignore[call-overload]
    cv2.absdiff(small, level, level)
    large = min(level.shape) >= CELL >> COMPARED
    moved = means(level, room) if large else shrink(level.astype(np.float32), (1, 1))
    limit = CHANGED + noise
    clipped: Cells = np.clip((np.rint(moved) - limit) / limit, 0, 1)
    return clipped


def strength(cells: Cells) -> float:
    """Mean of the strongest cells, rounded: it is written down with every frame."""
    count = round(STRONGEST * cells.size)
    if count <= 1:
        return round(float(cells.max()), 1)
    strongest = np.partition(cells, -count, axis=None)[-count:]
    return round(float(strongest.sum()) / count, 1)
