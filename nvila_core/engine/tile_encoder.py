"""Run the tiles of scheduled requests through the vision tower, in batches and never twice.

On a CPU a step encodes the tiles that it needs. With a `Tower` that works beside the language
model, a step starts passes and takes the features of those that are done.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvila_core.engine.background_tower import Pass, Tower
from nvila_core.engine.request import Request
from nvila_core.engine.tile_cache import TileCache
from nvila_core.errors import NotFinite
from nvila_core.model import NVILA
from nvila_core.models.device import is_device_lost

OnFailure = Callable[[Request, Exception], None]


@dataclass(eq=False)
class Flight:
    """A pass of the tower, and who needs its features.

    Attributes:
        owners: by tile hash, the request and the tile whose pixels are encoded.
        users: the requests and tiles that wait for features, each once, in order.
        began: seconds, when the pass was started.
    """

    running: Pass
    owners: dict[bytes, tuple[Request, int]]
    users: dict[tuple[Request, int], None]
    began: float


class TileEncoder:
    """Encodes the tiles that the next positions of requests need.

    Args:
        model: its vision tower and projector are used.
        cache: features by content, shared by all requests.
        step_tiles: maximum number of tiles in a step, or in a pass of `tower`.
        tower: encodes tiles while steps are computed; None: they wait for the tiles.
    """

    def __init__(
        self, model: NVILA, cache: TileCache, step_tiles: int, tower: Tower | None = None
    ) -> None:
        self.model, self.cache, self.step_tiles = model, cache, step_tiles
        self.tower = tower
        self.num_encoded = 0
        self._flights: list[Flight] = []
        """In order of their start."""
        self._taken_time = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether tiles are being encoded beside the steps."""
        return bool(self._flights)

    def is_done(self) -> bool:
        """Return whether features are there to `take`."""
        return bool(self._flights) and self._flights[0].running.is_done()

    def ready(self, request: Request, end: int) -> int:
        """Return the position, at most `end`, up to which a request's tiles are encoded."""
        for tile in request.missing_tiles(end):
            if (cached := self.cache.get(request.tile_hashes[tile])) is not None:
                request.tile_features[tile] = cached
        return request.encoded_until(end)

    def start(self, needed: Sequence[tuple[Request, int]], on_failure: OnFailure) -> None:
        """Start passes for the tiles of requests up to a position, as many as the tower takes.

        Args:
            needed, on_failure: see `encode`.
        """
        assert self.tower is not None
        while self.tower.has_room():
            new, users = self._next_pass(needed, min(self.step_tiles, self.tower.max_tiles))
            if not new:
                return
            prompts = [(request.sequence.prompt, tile) for request, tile in new.values()]
            pixels, began = [prompt.pixels[tile] for prompt, tile in prompts], time.perf_counter()
            try:
                running = self.tower.start(pixels, prompts[0][0].processor)
            except Exception as error:
                if is_device_lost(error):
                    raise
                running = None  # outside, the memory of the failed pass is free
            if running is None:
                self._encode_now(new, list(users), on_failure)
            else:
                self._flights.append(Flight(running, new, users, began))

    def _next_pass(
        self, needed: Sequence[tuple[Request, int]], most: int
    ) -> tuple[dict[bytes, tuple[Request, int]], dict[tuple[Request, int], None]]:
        """Return the owners and users of the next pass; see `Flight`."""
        flying = {h: flight for flight in self._flights for h in flight.owners}
        new: dict[bytes, tuple[Request, int]] = {}
        users: dict[tuple[Request, int], None] = {}
        processor = None
        for request, end in needed:
            if request.handle.done:  # an earlier pass has failed
                continue
            prompt = request.sequence.prompt
            for tile in request.missing_tiles(end):
                tile_hash = request.tile_hashes[tile]
                if tile_hash in flying:
                    flying[tile_hash].users[request, tile] = None
                elif tile_hash in new:
                    users[request, tile] = None
                elif len(new) < most and processor in (None, prompt.processor):
                    new[tile_hash], processor = (request, tile), prompt.processor
                    users[request, tile] = None
        return new, users

    def take(self, on_failure: OnFailure) -> None:
        """Give the features of passes that are done to the requests that need them.

        Args:
            on_failure: see `encode`.
        """
        while self.is_done():
            self._take_first(on_failure)

    def finish(self) -> None:
        """Wait for all passes, and keep their features for later requests."""
        while self._flights:
            self._take_first(lambda request, error: None)

    def _take_first(self, on_failure: OnFailure) -> None:
        """Give the features of the first pass to the requests that still need them."""
        flight = self._flights.pop(0)
        live = [
            (request, tile)
            for request, tile in flight.users
            if not request.handle.done and request.tile_hashes[tile] in flight.owners
        ]
        try:
            encoded, finite = flight.running.take()
        except Exception as error:
            if is_device_lost(error):
                raise
            for request in dict.fromkeys(request for request, _ in live):
                on_failure(request, error)
            return
        features = dict(zip(flight.owners, encoded, strict=True))
        self.num_encoded += len(features)
        damaged = {h for h, good in zip(flight.owners, finite, strict=True) if not good}
        for tile_hash in damaged:
            del features[tile_hash]
        now = time.perf_counter()
        elapsed, self._taken_time = 1000 * (now - max(flight.began, self._taken_time)), now
        self._give(flight.owners, live, features, damaged, on_failure)
        for request in dict.fromkeys(request for request, _ in live):
            request.sequence.encode_ms += elapsed

    def _give(
        self,
        new: dict[bytes, tuple[Request, int]],
        users: Sequence[tuple[Request, int]],
        features: dict[bytes, Tensor],
        damaged: set[bytes],
        on_failure: OnFailure,
    ) -> None:
        """Give features to those who need them, and keep them; fail who needs damaged ones."""
        for request in dict.fromkeys(r for r, tile in users if r.tile_hashes[tile] in damaged):
            on_failure(request, NotFinite("features of a picture"))
        for tile_hash, (request, tile) in new.items():
            if tile_hash in features:
                request.num_encoded_tiles += 1
                self.cache.put(tile_hash, features[tile_hash], request.sequence.prompt.pixels[tile])
        for request, tile in users:
            if (encoded := features.get(request.tile_hashes[tile])) is not None:
                request.tile_features[tile] = encoded

    def encode(self, needed: Sequence[tuple[Request, int]], on_failure: OnFailure) -> None:
        """Encode the tiles of requests up to a position, in the given order, as far as a step goes.

        Args:
            needed: each request with the position up to which it must be encoded.
            on_failure: called for a request whose tiles the tower cannot take, or of whose tiles it
                computes NaN or infinities, which are not kept; others continue.
        """
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
        if new:
            self._encode_now(new, users, on_failure)

    def _encode_now(
        self,
        new: dict[bytes, tuple[Request, int]],
        users: Sequence[tuple[Request, int]],
        on_failure: OnFailure,
    ) -> None:
        """Encode a batch while the caller waits."""
        began = time.perf_counter()
        features = self._encode_or_fail(new, on_failure)
        self.num_encoded += len(features)
        damaged = self._pop_damaged(features)
        elapsed = 1000 * (time.perf_counter() - began)
        self._give(new, users, features, damaged, on_failure)
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
        self, new: dict[bytes, tuple[Request, int]], on_failure: OnFailure
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
