"""Per-frame dynamic resolution: choose the grid of tiles for each frame of a clip.

A policy plans from measures alone, so it can run before an image is opened. `Adaptive` asks two
questions about a frame: how much fine detail one tile would lose, and whether another frame of the
clip, shown in more tiles, shows that detail already. docs/resolution.md explains the numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, log2, sqrt
from typing import Any, Protocol

from nvila_core.errors import PromptError
from nvila_core.resolution.grids import SINGLE_TILE, Grid, candidate_grids, choose_grid, tile_count

MAX_TILES = 256
"""Upper limit for the tiles of one frame, thumbnail not counted."""
BY_ASPECT, ONE_OF_SEVERAL = "published: by aspect ratio", "published: one of several"
EQUAL_DETAIL = 0.9
"""Frames with at least this share of the most detail count as equally detailed."""


@dataclass(frozen=True)
class Measures:
    """Measurements of a frame that replace its pixels in planning; `resolution.meter` makes them.

    Attributes:
        width, height: size of the upright frame in pixels.
        detail: edge strength by octave, 0 to 255. The first value is the strength of the structures
            that halving the frame would remove, the second that of those that halving it again
            would remove, and so on. Measured in the most detailed small part of the frame, with
            sensor noise subtracted.
        fresh: the same as `detail`, only for the parts that differ from the previous frame.
        change: mean absolute difference of the luma from the previous frame, 0 to 1; 1 for the
            first frame.
    """

    width: int
    height: int
    detail: tuple[float, ...] = ()
    fresh: tuple[float, ...] = ()
    change: float = 1.0

    def loss(self, grid: Grid, size: int) -> float:
        """Return the edge strength that a grid of `size`-pixel tiles loses, 0 to 255."""
        return self._loss(self.detail, grid, size)

    def fresh_loss(self, grid: Grid, size: int) -> float:
        """Return the edge strength that the grid loses of what is new since the previous frame."""
        return self._loss(self.fresh, grid, size)

    def _loss(self, octaves: tuple[float, ...], grid: Grid, size: int) -> float:
        # Assumes half of the energy along each axis, spread evenly over an octave.
        energy = 0.0
        for pixels, tiles in ((self.width, grid[0]), (self.height, grid[1])):
            lost = 0.0
            for strength, share in zip(octaves, _lost_shares(pixels, size * tiles), strict=False):
                lost += strength * strength * share
            energy += lost
        return sqrt(energy / 2)


@lru_cache(maxsize=4096)
def _lost_shares(pixels: int, kept: int) -> tuple[float, ...]:
    """Return which share of each octave is lost, finest first, where `pixels` are shown as `kept`
    along one axis; octaves of which nothing is lost are left out."""
    lost = max(0.0, log2(pixels / kept))
    return tuple(min(1.0, lost - k) for k in range(ceil(lost)))


@dataclass(frozen=True)
class TilingConfig:
    """The model's tile parameters.

    Attributes:
        size: side of a tile in pixels.
        tokens: vision tokens of one tile.
        min_tiles, max_tiles: limits of the published rule for a tiled frame, thumbnail not counted.
        grids: the grids of several tiles that the checkpoint was trained on; empty: any.
    """

    size: int
    tokens: int
    min_tiles: int = 1
    max_tiles: int = 12
    grids: tuple[Grid, ...] = ()

    def filled_tiles(self, frame: Measures, limit: int) -> int:
        """Return how many tiles the frame's own pixels can fill, from 1 to `limit`."""
        return max(1, min(limit, frame.width * frame.height // self.size**2))

    def grids_for(self, frame: Measures) -> list[Grid]:
        """Return the grids of several tiles that the frame's pixels fill, also along each side."""
        columns, rows = (max(1, round(side / self.size)) for side in (frame.width, frame.height))
        fit = _grids_within(self.filled_tiles(frame, self.max_tiles), columns, rows)
        return [grid for grid in fit if not self.grids or grid in self.grids]


@lru_cache(maxsize=256)
def _grids_within(tiles: int, columns: int, rows: int) -> tuple[Grid, ...]:
    """Return the grids of 2 to `tiles` tiles with at most so many columns and rows."""
    return tuple(
        grid for grid in candidate_grids(2, tiles) if grid[0] <= columns and grid[1] <= rows
    )


@dataclass(frozen=True)
class Budget:
    """Limits on the vision tokens of a clip. Every frame gets at least one tile regardless.

    Attributes:
        tokens: vision tokens of the clip; None: no limit.
        load: from 0 (idle) to 1 (one tile for each frame). This share of the tokens beyond one tile
            for each frame is given up because the model is behind.
    """

    tokens: int | None = None
    load: float = 0.0

    def __post_init__(self) -> None:
        if self.tokens is not None and self.tokens < 0:
            raise PromptError(f"A budget must be 0 tokens or more, not {self.tokens}.")
        if not 0 <= self.load <= 1:
            raise PromptError(f"The load must be from 0 to 1, not {self.load:g}.")

    def extra_tokens(self, minimum: int, wanted: int) -> int:
        """Return how many tokens a plan that wants `wanted` may spend beyond the `minimum`."""
        limit = wanted if self.tokens is None else self.tokens
        return max(0, int((limit - minimum) * (1 - self.load)))


UNLIMITED = Budget()


@dataclass(frozen=True)
class GridChoice:
    """The grid (columns, rows) of one frame, and the reason for it."""

    grid: Grid
    reason: str


@dataclass(frozen=True)
class Plan:
    """A grid for each frame of a clip, and the cost of all frames together.

    Attributes:
        frames: one plan for each frame, in the clip's order.
        tiles: tiles for the vision tower, thumbnails included.
        tokens: vision tokens.
    """

    frames: tuple[GridChoice, ...] = ()
    tiles: int = 0
    tokens: int = 0

    @staticmethod
    def of(frames: Sequence[GridChoice], tiling: TilingConfig) -> "Plan":
        """Return the plan of these frames with its cost."""
        tiles = sum(tile_count(frame.grid) for frame in frames)
        return Plan(tuple(frames), tiles, tiles * tiling.tokens)


class Policy(Protocol):
    """A rule that plans clips. The same measures, tiling and budget always give the same plan."""

    def plan(
        self, clip: Sequence[Measures], tiling: TilingConfig, budget: Budget = UNLIMITED
    ) -> Plan:
        """Plan the frames of a clip.

        Args:
            clip: measures of the frames, in order of time.
            tiling: the model's tile parameters.
            budget: limit on the vision tokens.
        """
        ...


@dataclass(frozen=True)
class Native:
    """The published rule: tile only a single image, by its aspect ratio. Ignores the budget."""

    def plan(
        self, clip: Sequence[Measures], tiling: TilingConfig, budget: Budget = UNLIMITED
    ) -> Plan:
        """See `Policy.plan`."""
        if len(clip) != 1:
            return Plan.of([GridChoice(SINGLE_TILE, ONE_OF_SEVERAL) for _ in clip], tiling)
        (frame,) = clip
        grid = choose_grid(
            frame.width, frame.height, tiling.size, tiling.min_tiles, tiling.max_tiles
        )
        return Plan.of([GridChoice(grid, BY_ASPECT)], tiling)


@dataclass(frozen=True)
class Fixed:
    """The published grid of at most `tiles` tiles for every frame.

    Where the budget ends, the oldest frames get one tile.
    """

    tiles: int

    def __post_init__(self) -> None:
        if not 1 <= self.tiles <= MAX_TILES:
            raise PromptError(
                f"A fixed policy must have from 1 to {MAX_TILES} tiles a frame, not {self.tiles}."
            )

    def plan(
        self, clip: Sequence[Measures], tiling: TilingConfig, budget: Budget = UNLIMITED
    ) -> Plan:
        """See `Policy.plan`."""
        grids = [self._grid(frame, tiling) for frame in clip]
        minimum = len(clip) * tiling.tokens
        left = budget.extra_tokens(minimum, sum(map(tile_count, grids)) * tiling.tokens)
        frames = []
        for grid in reversed(grids):
            left -= (tile_count(grid) - 1) * tiling.tokens
            reason = "over the budget" if left < 0 else f"fixed: at most {self.tiles}"
            frames.append(GridChoice(SINGLE_TILE if left < 0 else grid, reason))
        return Plan.of(frames[::-1], tiling)

    def _grid(self, frame: Measures, tiling: TilingConfig) -> Grid:
        max_tiles = tiling.filled_tiles(frame, self.tiles)
        grid = choose_grid(frame.width, frame.height, tiling.size, 1, max_tiles)
        if not tiling.grids or grid in tiling.grids:
            return grid
        trained = [g for g in tiling.grids if g[0] * g[1] <= max_tiles]
        return max(trained, key=tile_count, default=SINGLE_TILE)


@dataclass(frozen=True)
class Adaptive:
    """More tiles where one tile would lose detail that no other frame of the clip shows.

    The frame with the most detail comes first (the newest among equals), then the frames with new
    detail, the most detailed first. Each of them gets larger and larger grids until it loses at
    most `tolerance` or the budget ends.

    Args:
        tolerance: edge strength that may be lost, 0 to 255.
        gain: a larger grid must lose less than the previous one by at least this share.
    """

    tolerance: float = 8.0
    gain: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance <= 255:
            raise PromptError(f"The tolerance must be from 0 to 255, not {self.tolerance:g}.")

    def plan(
        self, clip: Sequence[Measures], tiling: TilingConfig, budget: Budget = UNLIMITED
    ) -> Plan:
        """See `Policy.plan`."""
        losses = [frame.loss(SINGLE_TILE, tiling.size) for frame in clip]
        steps = [
            self._grid_steps(frame, tiling, loss) for frame, loss in zip(clip, losses, strict=True)
        ]
        order, reasons, shown_in = self._rank_frames(clip, tiling, losses, steps)
        grids = [SINGLE_TILE for _ in clip]
        wanted = sum(tile_count(steps[i][-1]) - 1 for i in order) * tiling.tokens
        minimum = len(clip) * tiling.tokens
        left = budget.extra_tokens(minimum, minimum + wanted) // tiling.tokens
        # The sequence of steps does not depend on the budget, which only cuts it off: so a larger
        # budget never takes a tile away.
        for index, grid in ((i, grid) for i in order for grid in steps[i][1:]):
            left -= tile_count(grid) - tile_count(grids[index])
            if left < 0:
                break
            grids[index] = grid
        for i in order:
            if grids[i] != steps[i][-1]:
                reasons[i] += f"; over the budget: {format_grid(steps[i][-1])}"
        for i, other in shown_in.items():
            if grids[other] == SINGLE_TILE:
                reasons[i] = f"over the budget, as frame {other + 1} is"
        frames = [GridChoice(*pair) for pair in zip(grids, reasons, strict=True)]
        return Plan.of(frames, tiling)

    def _grid_steps(self, frame: Measures, tiling: TilingConfig, loss: float) -> list[Grid]:
        """Return grids of more and more tiles, from one tile, which has this `loss`, to the grid
        that the frame needs.

        Each is the grid that loses least of those with its number of tiles, and loses less than the
        previous one by at least the share `gain`.
        """
        steps = [SINGLE_TILE]
        if loss <= self.tolerance:
            return steps
        best: dict[int, tuple[float, Grid]] = {}
        for grid in tiling.grids_for(frame):
            option = (frame.loss(grid, tiling.size), grid)
            best[tile_count(grid)] = min(option, best.get(tile_count(grid), option))
        for _, (lost, grid) in sorted(best.items()):
            if loss <= self.tolerance:
                break
            if lost <= (1 - self.gain) * loss:
                steps.append(grid)
                loss = lost
        return steps

    def _rank_frames(
        self,
        clip: Sequence[Measures],
        tiling: TilingConfig,
        losses: Sequence[float],
        steps: Sequence[list[Grid]],
    ) -> tuple[list[int], list[str], dict[int, int]]:
        """Choose the frames that get several tiles.

        Returns:
            Their indices, the most important first; the reason for every frame; and for each frame
            whose detail another frame shows, the index of that frame.
        """
        reasons = [  # each of the others gets its own below
            self._single_tile_reason(frame, loss, tiling) if len(grids) == 1 else ""
            for frame, loss, grids in zip(clip, losses, steps, strict=True)
        ]
        waiting = [i for i, grids in enumerate(steps) if len(grids) > 1]
        if not waiting:
            return [], reasons, {}
        max_loss = max(losses[i] for i in waiting)
        first = max(i for i in waiting if losses[i] >= EQUAL_DETAIL * max_loss)
        reasons[first] = f"most detail ({losses[first]:.0f})"
        order = [first]
        fresh = [frame.fresh_loss(SINGLE_TILE, tiling.size) for frame in clip]
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

    def _single_tile_reason(self, frame: Measures, loss: float, tiling: TilingConfig) -> str:
        """Return why a frame gets one tile, if it does."""
        if loss <= self.tolerance:
            return f"little detail ({loss:.0f})"
        if not tiling.grids_for(frame):
            return "its pixels fill one tile"
        return f"more tiles would not help ({loss:.0f})"


def changes_since(index: int, fresh: Sequence[float]) -> list[float]:
    """Return, for each frame, the strongest new detail that appeared between it and `index`."""
    since = [0.0] * len(fresh)
    for i in range(index + 1, len(fresh)):
        since[i] = max(since[i - 1], fresh[i])
    for i in range(index - 1, -1, -1):
        since[i] = max(since[i + 1], fresh[i + 1])
    return since


def subsample(clip: Sequence[Measures], indices: Sequence[int]) -> list[Measures]:
    """Return the measures of the clip that the frames at `indices` make.

    What changed in a frame that is left out counts for the next frame that stays.

    Args:
        clip: measures of all frames, in order of time.
        indices: frames that stay, in ascending order, possibly repeated.
    """
    kept, previous = [], -1
    for index in indices:
        passed = clip[previous + 1 : index + 1]
        previous = index
        octaves = max((len(frame.fresh) for frame in passed), default=0)
        fresh = tuple(max((f.fresh + (0.0,) * octaves)[k] for f in passed) for k in range(octaves))
        change = min(1.0, sum(frame.change for frame in passed))
        frame = clip[index]
        kept.append(Measures(frame.width, frame.height, frame.detail, fresh, change))
    return kept


def parse_policy(policy: Any) -> Policy:
    """Return the policy with a name, such as one in a settings file.

    Args:
        policy: "native", "fixed:4" (tiles), "adaptive" or "adaptive:12" (tolerance); or a `Policy`,
            which is returned unchanged.

    Raises:
        PromptError: the policy is unknown or its number is out of range.
    """
    if callable(getattr(policy, "plan", None)):
        known: Policy = policy
        return known
    return _policy_of(str(policy))


@lru_cache(maxsize=64)
def _policy_of(policy: str) -> Policy:
    name, _, value = policy.partition(":")
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


def format_grid(grid: Grid) -> str:
    """Format a grid as text, e.g. "4x2"."""
    return f"{grid[0]}x{grid[1]}"
