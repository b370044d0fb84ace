"""Keep the features of encoded tiles by content, so that a still scene costs only what changed."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

_CELLS = 16


class TileCache:
    """Features of tiles by tile hash; the least recently used ones are evicted first.

    With a `tolerance` a tile may also stand in for one that looks the same: if no cell of a 16x16
    grid differs in its mean colour by more. Means over a cell hide sensor noise and show anything
    that covers more than a fraction of the cell. A tile is always compared with one that was
    encoded, never with one that was itself replaced, so slow changes do not add up unseen.

    Args:
        max_bytes: maximum size of the features; 0 disables the cache.
        tolerance: share of the full range from black to white; 0 accepts equal pixels only.
    """

    def __init__(self, max_bytes: int, tolerance: float = 0.0) -> None:
        self.max_bytes, self.tolerance = max_bytes, tolerance
        self.bytes = 0
        self._features: OrderedDict[bytes, Tensor] = OrderedDict()
        self._means: dict[bytes, Tensor] = {}

    def __len__(self) -> int:
        return len(self._features)

    def resolve(self, tile_hashes: Sequence[bytes], pixels: NDArray[np.uint8]) -> list[bytes]:
        """Return for each tile the hash of the tile whose features to use, by default its own.

        Args:
            tile_hashes: one for each tile.
            pixels: [tiles, S, S, 3].
        """
        if not self.tolerance or not self._means or not len(tile_hashes):
            return list(tile_hashes)
        cached = list(self._means)
        means = torch.stack([self._means[tile_hash] for tile_hash in cached])
        resolved = []
        for tile_hash, mean in zip(tile_hashes, cell_means(pixels), strict=True):
            if tile_hash not in self._features:
                distance, nearest = (means - mean).abs().amax(1).min(0)
                if float(distance) <= self.tolerance:
                    tile_hash = cached[int(nearest)]
            resolved.append(tile_hash)
        return resolved

    def get(self, tile_hash: bytes) -> Tensor | None:
        """Return the features of a tile, or None where they are not cached."""
        features = self._features.get(tile_hash)
        if features is not None:
            self._features.move_to_end(tile_hash)
        return features

    def put(self, tile_hash: bytes, features: Tensor, pixels: NDArray[np.uint8]) -> None:
        """Keep the features of a tile [S, S, 3]; they must not be changed afterwards."""
        if features.nbytes > self.max_bytes or tile_hash in self._features:
            return
        self._features[tile_hash] = features
        self.bytes += features.nbytes
        if self.tolerance:
            self._means[tile_hash] = cell_means(pixels[None])[0]
        while self.bytes > self.max_bytes:
            oldest, evicted = self._features.popitem(last=False)
            self.bytes -= evicted.nbytes
            self._means.pop(oldest, None)


def cell_means(pixels: NDArray[np.uint8]) -> Tensor:
    """Return mean colours [tiles, 3 * 16 * 16], 0 to 1, of the cells of tiles [tiles, S, S, 3]."""
    levels = torch.from_numpy(pixels).permute(0, 3, 1, 2).float()
    return F.adaptive_avg_pool2d(levels, _CELLS).div(255).flatten(1)
