"""Per-frame dynamic resolution: how many tiles each frame of a clip is worth, and why.

A policy plans from measures alone, so it can run before a picture is opened. `adaptive` asks two
things of a frame: how much fine detail one tile would lose, and whether another frame of the clip
that is shown in more tiles shows that detail already. docs/resolution.md explains the numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2, sqrt
from typing import Any, Protocol

from nvila_core.errors import PromptError
from nvila_core.resolution.grids import ONE, Grid, candidate_grids, choose_grid, tiles_of

MAX_TILES = 256
"""Of one frame."""
BY_ASPECT, ONE_OF_SEVERAL = "published: by aspect ratio", "published: one of several"
NEAR = 0.9
"""Frames with this share of the most detail count as equally detailed; the newest is taken."""


@dataclass(frozen=True)
class Measures:
    """What is known of a frame without its pixels; `Meter` measures it.

    Attributes:
        width, height: of the frame in pixels, upright.
        detail: edge strength by octave, 0 to 255: how strong the finest structures of the frame
            are that halving it loses, then those that halving it again loses, and so on. Of the
            most detailed small part of the frame, sensor noise subtracted.
        fresh: the same, of the parts alone that differ from the frame before.
        change: mean absolute difference of the luma to the frame before, 0 to 1; 1 for the first.
    """

    width: int
    height: int
    detail: tuple[float, ...] = ()
    fresh: tuple[float, ...] = ()
    change: float = 1.0

    def loss(self, grid: Grid, size: int) -> float:
        """Edge strength of what is lost in a grid of `size`-pixel tiles, 0 to 255."""
        return self._loss(self.detail, grid, size)

    def fresh_loss(self, grid: Grid, size: int) -> float:
        """The same, of what is new since the frame before."""
        return self._loss(self.fresh, grid, size)

    def _loss(self, octaves: tuple[float, ...], grid: Grid, size: int) -> float:
        """Half of the energy is taken to lie along each axis, spread evenly over an octave."""
        energy = 0.0
        for pixels, tiles in zip((self.width, self.height), grid, strict=True):
            lost = max(0.0, log2(pixels / (size * tiles)))
            energy += sum(v * v * min(1.0, lost - k) for k, v in enumerate(octaves) if lost > k)
        return sqrt(energy / 2)


@dataclass(frozen=True)
class Tiling:
    """What a tile is to the model.

    Attributes:
        size: its side in pixels.
        tokens: vision tokens of one tile.
        min_tiles, max_tiles: of a tiled frame, without the thumbnail, by the published rule.
        grids: the grids that the checkpoint knows beside one tile; empty: any.
    """

    size: int
    tokens: int
    min_tiles: int = 1
    max_tiles: int = 12
    grids: tuple[Grid, ...] = ()

    def fills(self, frame: Measures, most: int) -> int:
        """How many tiles, at most `most`, the frame's own pixels can fill; at least 1."""
        return max(1, min(most, frame.width * frame.height // self.size**2))

    def grids_for(self, frame: Measures) -> list[Grid]:
        """The grids of several tiles that the frame's own pixels fill, along each side too."""
        columns, rows = (max(1, round(side / self.size)) for side in (frame.width, frame.height))
        return [
            grid
            for grid in candidate_grids(2, self.fills(frame, self.max_tiles))
            if grid[0] <= columns and grid[1] <= rows and (not self.grids or grid in self.grids)
        ]


@dataclass(frozen=True)
class Budget:
    """What a clip may cost.

    Attributes:
        tokens: vision tokens of the clip; None: no limit. One tile for each frame is always given.
        load: from 0 (idle) to 1 (one tile a frame): the share of what lies above one tile for
            each frame that is given up because the model is behind.
    """

    tokens: int | None = None
    load: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 0:
            raise PromptError(f"A budget must be 0 tokens or more, not {self.tokens}.")
        if not 0 <= self.load <= 1:
            raise PromptError(f"The load must be from 0 to 1, not {self.load:g}.")

    def extra(self, least: int, wanted: int) -> int:
        """Tokens beyond the `least` that may be spent; `wanted` is what a plan would like."""
        limit = wanted if self.tokens is None else self.tokens
        return max(0, int((limit - least) * (1 - self.load)))


UNLIMITED = Budget()


@dataclass(frozen=True)
class PlannedFrame:
    """The grid (columns, rows) of one frame, and why."""

    grid: Grid
    reason: str


@dataclass(frozen=True)
class Plan:
    """A grid for each frame of a clip, and what all of them cost.

    Attributes:
        frames: in the clip's order.
        tiles: pictures for the vision tower, thumbnails included.
        tokens: vision tokens.
    """

    frames: tuple[PlannedFrame, ...] = ()
    tiles: int = 0
    tokens: int = 0

    @staticmethod
    def of(frames: Sequence[PlannedFrame], tiling: Tiling) -> "Plan":
        """A plan of these frames."""
        tiles = sum(tiles_of(frame.grid) for frame in frames)
        return Plan(tuple(frames), tiles, tiles * tiling.tokens)


class Policy(Protocol):
    """Plans a clip. The same measures, tiling and budget always give the same plan."""

    def plan(self, clip: Sequence[Measures], tiling: Tiling, budget: Budget = UNLIMITED) -> Plan:
        """A plan for the frames of a clip, in order of time."""
        ...


@dataclass(frozen=True)
class Native:
    """The published rule: by aspect ratio, a single picture alone is tiled. Knows no budget."""

    def plan(self, clip: Sequence[Measures], tiling: Tiling, budget: Budget = UNLIMITED) -> Plan:
        """See `Policy.plan`."""
        if len(clip) != 1:
            return Plan.of([PlannedFrame(ONE, ONE_OF_SEVERAL) for _ in clip], tiling)
        (frame,) = clip
        grid = choose_grid(
            frame.width, frame.height, tiling.size, tiling.min_tiles, tiling.max_tiles
        )
        return Plan.of([PlannedFrame(grid, BY_ASPECT)], tiling)


@dataclass(frozen=True)
class Fixed:
    """Every frame in the published grid of at most `tiles` tiles; what is over the budget gets one
    tile, the oldest first.
    """

    tiles: int

    def __post_init__(self) -> None:
        if not 1 <= self.tiles <= MAX_TILES:
            raise PromptError(
                f"A fixed policy has from 1 to {MAX_TILES} tiles a frame, not {self.tiles}."
            )

    def plan(self, clip: Sequence[Measures], tiling: Tiling, budget: Budget = UNLIMITED) -> Plan:
        """See `Policy.plan`."""
        grids = [self._grid(frame, tiling) for frame in clip]
        least = len(clip) * tiling.tokens
        left = budget.extra(least, sum(map(tiles_of, grids)) * tiling.tokens)
        frames = []
        for grid in reversed(grids):
            left -= (tiles_of(grid) - 1) * tiling.tokens
            reason = "over the budget" if left < 0 else f"fixed: at most {self.tiles}"
            frames.append(PlannedFrame(ONE if left < 0 else grid, reason))
        return Plan.of(frames[::-1], tiling)

    def _grid(self, frame: Measures, tiling: Tiling) -> Grid:
        most = tiling.fills(frame, self.tiles)
        grid = choose_grid(frame.width, frame.height, tiling.size, 1, most)
        if not tiling.grids or grid in tiling.grids:
            return grid
        known = [g for g in tiling.grids if g[0] * g[1] <= most]
        return max(known, key=tiles_of, default=ONE)


@dataclass(frozen=True)
class Adaptive:
    """Tiles where one tile would lose detail that no other frame of the clip shows.

    The frame with the most detail comes first (the newest among equals), then, the most detail
    first, frames in which detail is new. Each is raised from grid to grid until it loses no more
    than `tolerance`, for as long as the budget lasts.

    Args:
        tolerance: edge strength, 0 to 255, that may be lost.
        gain: a grid must lose this share less than the one before to be worth its tiles.
    """

    tolerance: float = 8.0
    gain: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 255:
            raise PromptError(f"The tolerance must be from 0 to 255, not {self.tolerance:g}.")

    def plan(self, clip: Sequence[Measures], tiling: Tiling, budget: Budget = UNLIMITED) -> Plan:
        """See `Policy.plan`."""
        losses = [frame.loss(ONE, tiling.size) for frame in clip]
        ladders = [self._ladder(frame, tiling) for frame in clip]
        order, reasons, shown = self._views(clip, tiling, losses, ladders)
        grids = [ONE for _ in clip]
        wanted = sum(tiles_of(ladders[i][-1]) - 1 for i in order) * tiling.tokens
        least = len(clip) * tiling.tokens
        left = budget.extra(least, least + wanted) // tiling.tokens
        # A fixed sequence of steps cut off where the budget ends: more of it never takes away.
        for index, grid in ((i, grid) for i in order for grid in ladders[i][1:]):
            left -= tiles_of(grid) - tiles_of(grids[index])
            if left < 0:
                break
            grids[index] = grid
        for i in order:
            if grids[i] != ladders[i][-1]:
                reasons[i] += f"; over the budget: {text_of(ladders[i][-1])}"
        for i, view in shown.items():
            if grids[view] == ONE:
                reasons[i] = f"over the budget, as frame {view + 1} is"
        frames = [PlannedFrame(*pair) for pair in zip(grids, reasons, strict=True)]
        return Plan.of(frames, tiling)

    def _ladder(self, frame: Measures, tiling: Tiling) -> list[Grid]:
        """Grids from one tile to the one that the frame deserves; for each number of tiles the
        grid that loses least, and only if it is worth it.
        """
        ladder, loss = [ONE], frame.loss(ONE, tiling.size)
        best: dict[int, tuple[float, Grid]] = {}
        for grid in tiling.grids_for(frame):
            option = (frame.loss(grid, tiling.size), grid)
            best[tiles_of(grid)] = min(option, best.get(tiles_of(grid), option))
        for _, (lost, grid) in sorted(best.items()):
            if loss <= self.tolerance:
                break
            if lost <= (1 - self.gain) * loss:
                ladder.append(grid)
                loss = lost
        return ladder

    def _views(
        self,
        clip: Sequence[Measures],
        tiling: Tiling,
        losses: Sequence[float],
        ladders: Sequence[list[Grid]],
    ) -> tuple[list[int], list[str], dict[int, int]]:
        """The frames to look at closely, the most urgent first; the reason of every frame; and
        for those whose detail another one shows, which one that is.
        """
        reasons = [self._plain(*frame, tiling) for frame in zip(clip, losses, ladders, strict=True)]
        waiting = [i for i, ladder in enumerate(ladders) if len(ladder) > 1]
        if not waiting:
            return [], reasons, {}
        most = max(losses[i] for i in waiting)
        first = max(i for i in waiting if losses[i] >= NEAR * most)
        reasons[first] = f"most detail ({losses[first]:.0f})"
        order = [first]
        fresh = [frame.fresh_loss(ONE, tiling.size) for frame in clip]
        new = {i: (since, first) for i, since in enumerate(changes_since(first, fresh))}
        while True:
            waiting = [i for i in waiting if i not in order]
            for i in waiting:
                reasons[i] = f"shown in frame {new[i][1] + 1} (new: {new[i][0]:.0f})"
            value = {i: min(losses[i], new[i][0]) for i in waiting}
            index = max(waiting, key=lambda i: (value[i], i), default=None)
            if index is None or value[index] <= self.tolerance:
                return order, reasons, {i: new[i][1] for i in waiting}
            reasons[index] = f"new detail ({value[index]:.0f})"
            order.append(index)
            for i, since in enumerate(changes_since(index, fresh)):
                new[i] = min(new[i], (since, index))

    def _plain(self, frame: Measures, loss: float, ladder: list[Grid], tiling: Tiling) -> str:
        """Why a frame has one tile, unless it is looked at closely."""
        if loss <= self.tolerance:
            return f"little detail ({loss:.0f})"
        if not tiling.grids_for(frame):
            return "its pixels fill one tile"
        return f"more tiles would not help ({loss:.0f})"


def changes_since(index: int, fresh: Sequence[float]) -> list[float]:
    """For each frame the strongest new detail that came between it and frame `index`."""
    since = [0.0] * len(fresh)
    for i in range(index + 1, len(fresh)):
        since[i] = max(since[i - 1], fresh[i])
    for i in range(index - 1, -1, -1):
        since[i] = max(since[i + 1], fresh[i + 1])
    return since


def thin(clip: Sequence[Measures], indices: Sequence[int]) -> list[Measures]:
    """Measures of the frames at `indices` (ascending, repeats allowed) as a clip of their own: what
    changed in the frames between counts for the next one that stays.
    """
    kept, before = [], -1
    for index in indices:
        passed = clip[before + 1 : index + 1]
        before = index
        octaves = max((len(frame.fresh) for frame in passed), default=0)
        fresh = tuple(max((f.fresh + (0.0,) * octaves)[k] for f in passed) for k in range(octaves))
        change = min(1.0, sum(frame.change for frame in passed))
        own = clip[index]
        kept.append(Measures(own.width, own.height, own.detail, fresh, change))
    return kept


def parse_policy(policy: Any) -> Policy:
    """A policy from its name, e.g. in a settings file; a policy is given back as it is.

    Args:
        policy: "native", "fixed:4" (tiles), "adaptive" or "adaptive:12" (tolerance).

    Raises:
        PromptError: it is none of these.
    """
    if callable(getattr(policy, "plan", None)):
        known: Policy = policy
        return known
    name, _, value = str(policy).partition(":")
    try:
        if name == "native" and not value:
            return Native()
        if name == "fixed":
            return Fixed(int(value))
        if name == "adaptive":
            return Adaptive(float(value)) if value else Adaptive()
    except ValueError:
        pass
    raise PromptError(
        f"The policy {policy!r} is unknown; use 'native', 'fixed:4' (tiles), 'adaptive' or "
        "'adaptive:12' (tolerance)."
    )


def text_of(grid: Grid) -> str:
    """A grid as people write it."""
    return f"{grid[0]}x{grid[1]}"
