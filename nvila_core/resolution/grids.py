"""Grids of tiles, and the published rule that chooses one by an image's aspect ratio alone."""

from functools import lru_cache

Grid = tuple[int, int]
"""(columns, rows), unless stated otherwise."""

SINGLE_TILE: Grid = (1, 1)


@lru_cache(maxsize=256)
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """Return every grid with min_tiles <= columns * rows <= max_tiles, fewest tiles first."""
    grids = [
        (i, j)
        for i in range(1, max_tiles + 1)
        for j in range(1, max_tiles // i + 1)
        if i * j >= min_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def choose_grid(width: int, height: int, size: int, min_tiles: int, max_tiles: int) -> Grid:
    """Return the grid of `size`-pixel tiles whose aspect ratio is nearest to the image's.

    On a tie, the larger grid wins if the image's pixels fill at least half of it.
    """
    ratio, area = width / height, width * height
    best, best_distance = SINGLE_TILE, float("inf")
    for i, j in candidate_grids(min_tiles, max_tiles):
        distance = abs(ratio - i / j)
        tied = distance == best_distance
        if distance < best_distance or (tied and area > 0.5 * size * size * i * j):
            best, best_distance = (i, j), distance
    return best


def tile_count(grid: Grid) -> int:
    """Return the tiles of a frame: the grid's and, if it has several, a thumbnail."""
    columns, rows = grid
    return columns * rows + (columns * rows > 1)
