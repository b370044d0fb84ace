"""Encoded tiles by content: a camera that looks at a still scene pays for what changed."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_CELLS = 16


class TileCache:
    """Features of tiles, by a key of their pixels; the least recently used ones go first.

    With a `tolerance` a tile may also stand in for one that looks the same: if no cell of a 16x16
    grid differs in its mean colour by more. Means over a cell are blind to sensor noise and see
    whatever is larger than a fraction of the cell. A tile is always compared with one that was
    encoded, never with one that was itself replaced, so slow changes do not add up unseen.

    Args:
        max_bytes: room for features; 0 keeps nothing.
        tolerance: share of the full range from black to white; 0 means equal pixels only.
    """

    def __init__(self, max_bytes: int, tolerance: float = 0.0) -> None:
        self.max_bytes, self.tolerance = max_bytes, tolerance
        self.bytes = 0
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        self._looks: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._features)

    def resolve(self, keys: Sequence[bytes], pixels: NDArray[np.uint8]) -> list[bytes]:
        """For each tile the key of the one whose features serve for it; its own by default.

        Args:
            keys: of the tiles.
            pixels: [tiles, S, S, 3].
        """
        if not self.tolerance or not self._looks or not len(keys):
            return list(keys)
        known = list(self._looks)
        looks = torch.stack([self._looks[key] for key in known])
        resolved = []
        for key, look in zip(keys, cells(pixels), strict=True):
            if key not in self._features:
                nearest, place = (looks - look).abs().amax(1).min(0)
                if float(nearest) <= self.tolerance:
                    key = known[int(place)]
            resolved.append(key)
        return resolved

    def get(self, key: bytes) -> Tensor | None:
        """The features of a tile, if they are there."""
        features = self._features.get(key)
        if features is not None:
            self._features.move_to_end(key)
        return features

    def put(self, key: bytes, features: Tensor, pixels: NDArray[np.uint8]) -> None:
        """Keep the features of a tile [S, S, 3]; they must not be changed afterwards."""
        if features.nbytes > self.max_bytes or key in self._features:
            return
        self._features[key] = features
        self.bytes += features.nbytes
        if self.tolerance:
            self._looks[key] = cells(pixels[None])[0]
        while self.bytes > self.max_bytes:
            oldest, gone = self._features.popitem(last=False)
            self.bytes -= gone.nbytes
            self._looks.pop(oldest, None)


def cells(pixels: NDArray[np.uint8]) -> Tensor:
    """Mean colours [tiles, 3 * 16 * 16] of the cells of tiles [tiles, S, S, 3], from 0 to 1."""
    levels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    return F.adaptive_avg_pool2d(levels, _CELLS).div(255).flatten(1)
