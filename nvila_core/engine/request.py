"""A request in the engine: its sequence, its handle, and its share of the caches."""

from dataclasses import dataclass, field

from torch import Tensor

from nvila_core.engine.handle import Handle
from nvila_core.engine.prefix_keys import BlockHashes, PromptLayout, hash_media
from nvila_core.generation.sequence import Sequence

NEVER = float("inf")


@dataclass(eq=False)
class Request:
    """A request as the scheduler and the batches see it.

    Requests sort in the order in which they are served: higher priority first, then earlier
    deadline, then arrival.

    Attributes:
        sequence: the prompt and what has been generated.
        handle: what the caller of `Engine.submit` holds.
        layout: the prompt's positions.
        tile_hashes: hashes of the tiles whose features are used: of the prompt's own tiles, or of
            similar ones.
        own_tile_hashes: hashes of the prompt's own tiles.
        priority: as given, or that of a request which waits for blocks that this one computes.
        deadline: seconds on the engine's clock.
        timeout: seconds from arrival to deadline, as given.
        arrival_time: seconds on the engine's clock.
        arrival_index: place among all requests submitted to the engine.
        scheduled_time: when it was first scheduled, on the engine's clock; None before.
        block_hashes: hashes of the blocks of its positions.
        blocks: block table; block i holds the keys and values from position i * block size on.
        num_computed_tokens: positions whose keys and values are in the cache.
        num_cached_blocks: blocks whose content has been registered in the block pool.
        num_encoded_tiles: tiles that went through the vision tower for this request.
        tile_features: features by tile, as `NVILA.encode_tiles` gives them; dropped after prefill.
        media_embeddings: embeddings by media token, as spliced into the prompt; dropped with them.
    """

    sequence: Sequence
    handle: Handle
    layout: PromptLayout
    tile_hashes: list[bytes]
    priority: int
    deadline: float
    timeout: float
    arrival_time: float
    own_tile_hashes: list[bytes] = field(init=False)
    arrival_index: int = 0
    scheduled_time: float | None = None
    block_hashes: BlockHashes = field(init=False)
    blocks: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_cached_blocks: int = 0
    num_encoded_tiles: int = 0
    tile_features: dict[int, Tensor] = field(default_factory=dict)
    media_embeddings: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.own_tile_hashes = self.tile_hashes

    def __lt__(self, other: "Request") -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, float, int]:
        return -self.priority, self.deadline, self.arrival_index

    @property
    def num_tokens(self) -> int:
        """Positions of the prompt and of what has been generated."""
        return self.sequence.prompt.num_tokens + len(self.sequence.token_ids)

    @property
    def num_new_tokens(self) -> int:
        """Positions to compute before the next token can be drawn; 1 while decoding."""
        return self.num_tokens - self.num_computed_tokens

    def missing_tiles(self, end: int) -> list[int]:
        """Return the tiles to encode before the positions up to `end` can be embedded."""
        media = self.sequence.prompt.media
        return [
            tile
            for span in self.layout.overlapping(self.num_computed_tokens, end)
            if span.index not in self.media_embeddings
            for tile in media[span.index].tile_range
            if tile not in self.tile_features
        ]

    def encoded_until(self, end: int) -> int:
        """Return the position, at most `end`, up to which all media are encoded."""
        media = self.sequence.prompt.media
        for span in self.layout.overlapping(self.num_computed_tokens, end):
            encoded = all(tile in self.tile_features for tile in media[span.index].tile_range)
            if span.index not in self.media_embeddings and not encoded:
                return max(self.num_computed_tokens, span.start)
        return end

    def use_tiles(self, tile_hashes: list[bytes], block_size: int) -> None:
        """Use the features of these tiles, one for each tile of the prompt."""
        self.tile_hashes = tile_hashes
        self.block_hashes = BlockHashes(
            self.layout,
            hash_media(self.sequence.prompt, tile_hashes),
            self.sequence.token_ids,
            block_size,
        )

    def drop_media(self) -> None:
        """Free the features and embeddings of all media."""
        self.tile_features.clear()
        self.media_embeddings.clear()
