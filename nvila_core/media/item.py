"""The media tokens of a prompt, and the tiles and positions that they stand for."""

from dataclasses import dataclass
from typing import Literal

from nvila_core.resolution.grids import Grid

VideoAs = Literal["image", "video"]


@dataclass(frozen=True)
class Media:
    """The tiles and positions that one media token stands for.

    Attributes:
        kind: which token it is, "image" or "video".
        first: index of its first tile in `Prompt.pixels`.
        tiles: number of its tiles.
        block: (rows, columns) of the last scale for dynamic S2, else None.
        vision_tokens: positions that hold features.
        positions: all of its positions, including start, end and separator tokens.
    """

    kind: VideoAs
    first: int
    tiles: int
    block: Grid | None
    vision_tokens: int
    positions: int

    @property
    def tile_range(self) -> range:
        """Indices of its tiles in `Prompt.pixels`."""
        return range(self.first, self.first + self.tiles)
