"""What a media token of a prompt stands for."""

from dataclasses import dataclass
from typing import Literal

from nvila_core.resolution.grids import Grid

VideoAs = Literal["image", "video"]


@dataclass(frozen=True)
class Media:
    """What one media token stands for.

    Attributes:
        kind: which token it is, "image" or "video".
        first: index of its first tile in `Prompt.pixels`.
        tiles: how many tiles it has.
        block: (rows, columns) of the last scale for dynamic S2, else None.
        vision_tokens: positions that hold features.
        positions: all of its positions, line ends included.
    """

    kind: VideoAs
    first: int
    tiles: int
    block: Grid | None
    vision_tokens: int
    positions: int

    @property
    def tile_range(self) -> range:
        """The indices of its tiles."""
        return range(self.first, self.first + self.tiles)
