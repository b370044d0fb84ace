"""A request in the engine: its sequence, its caller, and what it holds of the caches."""

from dataclasses import dataclass, field

from torch import Tensor

from nvila_core.engine.handle import Handle
from nvila_core.engine.prefix_keys import BlockKeys, Layout
from nvila_core.generation.sequence import Sequence

NEVER = float("inf")


@dataclass(order=True)
class Request:
    """What the scheduler and the batches need to know of one request.

    The order is that in which requests are served: priority, then deadline, then arrival.

    Attributes:
        urgency: minus the priority.
        deadline: on the engine's clock, seconds.
        tiles: keys of the prompt's tiles.
        keys: of the blocks of its positions.
        blocks: that it owns; block i holds positions from i * block size on.
        computed: positions whose keys and values are in the cache.
        features: tiles encoded so far, as `NVILA.encode_tiles` gives them; dropped after prefill.
        embedded: whole media, as they are spliced into the prompt; dropped likewise.
    """

    urgency: int
    deadline: float
    number: int
    sequence: Sequence = field(compare=False)
    handle: Handle = field(compare=False)
    layout: Layout = field(compare=False)
    tiles: list[bytes] = field(compare=False)
    submitted: float = field(compare=False)
    allowed: float = field(compare=False, default=NEVER)
    keys: BlockKeys = field(compare=False, init=False)
    started: float | None = field(compare=False, default=None)
    blocks: list[int] = field(compare=False, default_factory=list)
    computed: int = field(compare=False, default=0)
    published: int = field(compare=False, default=0)
    features: dict[int, Tensor] = field(compare=False, default_factory=dict)
    embedded: dict[int, Tensor] = field(compare=False, default_factory=dict)
    encoded_tiles: int = field(compare=False, default=0)

    @property
    def known(self) -> int:
        """Positions whose content is known: the prompt and what has been generated."""
        return self.sequence.prompt.num_tokens + len(self.sequence.token_ids)

    @property
    def pending(self) -> int:
        """Positions to compute before the next token can be drawn."""
        return self.known - self.computed

    def missing_tiles(self, end: int) -> list[int]:
        """Tiles still to encode before the positions up to `end` can be embedded."""
        media = self.sequence.prompt.media
        return [
            tile
            for span in self.layout.within(self.computed, end)
            if span.index not in self.embedded
            for tile in media[span.index].tile_range
            if tile not in self.features
        ]

    def ready(self, end: int) -> int:
        """Up to which position, at most `end`, everything is encoded."""
        media = self.sequence.prompt.media
        for span in self.layout.within(self.computed, end):
            encoded = all(tile in self.features for tile in media[span.index].tile_range)
            if span.index not in self.embedded and not encoded:
                return max(self.computed, span.start)
        return end

    def drop_media(self) -> None:
        """Let go of encoded media."""
        self.features.clear()
        self.embedded.clear()
