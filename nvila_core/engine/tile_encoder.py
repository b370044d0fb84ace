"""Run the tiles of scheduled requests through the vision tower, in one batch and never twice."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nvila_core.engine.request import Request
from nvila_core.engine.tile_cache import TileCache
from nvila_core.errors import NotFinite
from nvila_core.model import NVILA


class TileEncoder:
    """Encodes the tiles that the next positions of requests need.

    Args:
        model: its vision tower and projector are used.
        cache: features by content, shared by all requests.
        step_tiles: maximum number of tiles in a step.
    """

    def __init__(self, model: NVILA, cache: TileCache, step_tiles: int) -> None:
        self.model, self.cache, self.step_tiles = model, cache, step_tiles
        self.num_encoded = 0

    def encode(
        self,
        needed: Sequence[tuple[Request, int]],
        on_failure: Callable[[Request, Exception], None],
    ) -> None:
        """Encode the tiles of requests up to a position, in the given order, as far as a step goes.

        Args:
            needed: each request with the position up to which it must be encoded.
            on_failure: called for a request whose tiles the tower cannot take, or of whose tiles it
                computes NaN or infinities, which are not kept; others continue.
        """
        began = time.perf_counter()
        new: dict[bytes, tuple[Request, int]] = {}
        users: list[tuple[Request, int]] = []
        for request, end in needed:
            for tile in request.missing_tiles(end):
                tile_hash = request.tile_hashes[tile]
                if tile_hash in new:
                    users.append((request, tile))
                elif (cached := self.cache.get(tile_hash)) is not None:
                    request.tile_features[tile] = cached
                elif len(new) < self.step_tiles:
                    new[tile_hash] = (request, tile)
                    users.append((request, tile))
        if not new:
            return
        features = self._encode_or_fail(new, on_failure)
        self.num_encoded += len(features)
        damaged = self._pop_damaged(features)
        for request in dict.fromkeys(r for r, tile in users if r.tile_hashes[tile] in damaged):
            on_failure(request, NotFinite("features of a picture"))
        for tile_hash, (request, tile) in new.items():
            if tile_hash in features:
                request.num_encoded_tiles += 1
                self.cache.put(tile_hash, features[tile_hash], request.sequence.prompt.pixels[tile])
        elapsed = 1000 * (time.perf_counter() - began)
        for request, tile in users:
            if (encoded := features.get(request.tile_hashes[tile])) is not None:
                request.tile_features[tile] = encoded
        for request in dict.fromkeys(request for request, _ in users):
            request.sequence.encode_ms += elapsed

    def lacks_similar_tile(self, request: Request, end: int) -> bool:
        """Return whether a tile before `end` uses a similar tile, whose features are gone."""
        return any(
            request.tile_hashes[tile] != request.own_tile_hashes[tile]
            and self.cache.get(request.tile_hashes[tile]) is None
            for tile in request.missing_tiles(end)
        )

    def embed_media(self, request: Request, index: int) -> Tensor:
        """Return the embeddings [positions, D] of a media token whose tiles are all encoded."""
        if index not in request.media_embeddings:
            item = request.sequence.prompt.media[index]
            tiles = torch.stack([request.tile_features[tile] for tile in item.tile_range])
            request.media_embeddings[index] = self.model.media_from_tiles(tiles, item)
        return request.media_embeddings[index]

    def _pop_damaged(self, features: dict[bytes, Tensor]) -> set[bytes]:
        """Remove the features that are not finite, and return the hashes of their tiles."""
        if not features:
            return set()
        finite = torch.stack([one.isfinite().all() for one in features.values()]).tolist()
        damaged = {tile_hash for tile_hash, ok in zip(features, finite, strict=True) if not ok}
        for tile_hash in damaged:
            del features[tile_hash]
        return damaged

    def _encode_or_fail(
        self,
        new: dict[bytes, tuple[Request, int]],
        on_failure: Callable[[Request, Exception], None],
    ) -> dict[bytes, Tensor]:
        """Encode all tiles at once, or request by request, so that only the failing one fails."""
        try:
            return self._encode_batch(new)
        except Exception as error:
            owners = dict.fromkeys(request for request, _ in new.values())
            if len(owners) == 1:
                on_failure(next(iter(owners)), error)
                return {}
        features: dict[bytes, Tensor] = {}
        for owner in owners:
            own = {tile_hash: place for tile_hash, place in new.items() if place[0] is owner}
            features |= self._encode_or_fail(own, on_failure)
        return features

    def _encode_batch(self, new: dict[bytes, tuple[Request, int]]) -> dict[bytes, Tensor]:
        encoded = self.model.encode_tiles(self._pixels(list(new.values())))
        # Copy each tile, so that keeping one does not keep the whole batch.
        return {tile_hash: one.clone() for tile_hash, one in zip(new, encoded, strict=True)}

    def _pixels(self, places: Sequence[tuple[Request, int]]) -> Tensor:
        """Return normalised pixels float32 [tiles, 3, S, S]; on a GPU they travel as bytes."""
        prompts = [(request.sequence.prompt, tile) for request, tile in places]
        processors = {prompt.processor for prompt, _ in prompts}
        if self.model.device.type != "cuda" or len(processors) > 1:
            return torch.cat(
                [prompt.processor.normalise(prompt.pixels[tile, None]) for prompt, tile in prompts]
            )
        shape = (len(prompts), *prompts[0][0].pixels.shape[1:])
        host = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        for target, (prompt, tile) in zip(host.numpy(), prompts, strict=True):
            target[:] = prompt.pixels[tile]
        pixels = host.to(self.model.device, non_blocking=True)
        return processors.pop().normalise_on_device(pixels)
