"""Pictures of running requests through the vision tower: together, a bounded number a step, and
none twice.
"""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nvila_core.engine.request import Request
from nvila_core.engine.tile_cache import TileCache
from nvila_core.model import NVILA


class TileEncoder:
    """Fills in the features that the next positions of requests need.

    Args:
        model: its tower and projector are used.
        cache: features by content, shared by all requests.
        step_tiles: most tiles that go through the tower in one step.
    """

    def __init__(self, model: NVILA, cache: TileCache, step_tiles: int) -> None:
        self.model, self.cache, self.step_tiles = model, cache, step_tiles
        self.encoded = 0

    def encode(
        self,
        wanted: Sequence[tuple[Request, int]],
        failed: Callable[[Request, Exception], None],
    ) -> None:
        """Encode what each request needs up to a position; the first come first.

        `failed` is called for a request whose tiles the tower cannot take; the others go on.
        """
        began = time.perf_counter()
        new: dict[bytes, tuple[Request, int]] = {}
        users: list[tuple[Request, int]] = []
        for request, end in wanted:
            for tile in request.missing_tiles(end):
                key = request.tiles[tile]
                if key in new:
                    users.append((request, tile))
                elif (kept := self.cache.get(key)) is not None:
                    request.features[tile] = kept
                elif len(new) < self.step_tiles:
                    new[key] = (request, tile)
                    users.append((request, tile))
        if not new:
            return
        features = self._run(new, failed)
        for key, (request, tile) in new.items():
            if key in features:
                request.encoded_tiles += 1
                self.cache.put(key, features[key], request.sequence.prompt.pixels[tile])
        self.encoded += len(features)
        spent = 1000 * (time.perf_counter() - began)
        for request, tile in users:
            if (found := features.get(request.tiles[tile])) is not None:
                request.features[tile] = found
        for request in {id(request): request for request, _ in users}.values():
            request.sequence.encode_ms += spent

    def embed(self, request: Request, index: int) -> Tensor:
        """[positions, D] of one media token whose tiles are all encoded."""
        if index not in request.embedded:
            item = request.sequence.prompt.media[index]
            tiles = torch.stack([request.features[tile] for tile in item.tile_range])
            request.embedded[index] = self.model.media_from_tiles(tiles, item)
        return request.embedded[index]

    def _run(
        self,
        new: dict[bytes, tuple[Request, int]],
        failed: Callable[[Request, Exception], None],
    ) -> dict[bytes, Tensor]:
        try:
            return self._together(new)
        except Exception as error:
            owners = {id(request): request for request, _ in new.values()}
            if len(owners) == 1:
                failed(next(iter(owners.values())), error)
                return {}
        features: dict[bytes, Tensor] = {}
        for owner in owners.values():  # one by one, so that only the culprit fails
            own = {key: place for key, place in new.items() if place[0] is owner}
            features |= self._run(own, failed)
        return features

    def _together(self, new: dict[bytes, tuple[Request, int]]) -> dict[bytes, Tensor]:
        prompts = ((request.sequence.prompt, tile) for request, tile in new.values())
        pixels = torch.cat(
            [prompt.processor.normalise(prompt.pixels[tile, None]) for prompt, tile in prompts]
        )
        # Copies, so that keeping one tile does not keep the whole batch.
        return {
            key: one.clone() for key, one in zip(new, self.model.encode_tiles(pixels), strict=True)
        }
