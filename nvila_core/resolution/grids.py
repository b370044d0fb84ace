"""Grids of tiles, and the published rule that chooses one by a picture's aspect ratio alone."""

from functools import lru_cache

Grid = tuple[int, int]
"""(columns, rows), unless said otherwise."""

ONE: Grid = (1, 1)


@lru_cache(maxsize=256)
def candidate_grids(min_tiles: int, max_tiles: int) -> tuple[Grid, ...]:
    """All (columns, rows) with min_tiles <= columns * rows <= max_tiles, fewest tiles first."""
    grids = [
        (i, j)
        for i in range(1, max_tiles + 1)
        for j in range(1, max_tiles // i + 1)
        if i * j >= min_tiles
    ]
    return tuple(sorted(grids, key=lambda grid: grid[0] * grid[1]))


def choose_grid(width: int, height: int, size: int, min_tiles: int, max_tiles: int) -> Grid:
    """The (columns, rows) nearest to the aspect ratio; on a tie the larger one if the image can
    fill half of it.
    """
    ratio, area = width / height, width * height
    best, distance = ONE, float("inf")
    for i, j in candidate_grids(min_tiles, max_tiles):
        away = abs(ratio - i / j)
        if away < distance or (away == distance and area > 0.5 * size * size * i * j):
            best, distance = (i, j), away
    return best


def tiles_of(grid: Grid) -> int:
    """Tiles that the model is shown for a frame: the grid's and, when it has several, a thumbnail
    of the whole."""
    columns, rows = grid
    return columns * rows + (columns * rows > 1)
