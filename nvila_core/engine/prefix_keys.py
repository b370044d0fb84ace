"""Map a prompt position by position, and hash its blocks for prefix caching.

Two prompts share the keys and values of their first blocks if and only if the same tokens and the
same tiles stand there, so a block hash covers the block's content and the hash before it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256

import numpy as np
from numpy.typing import NDArray

from nvila_core.prompt.builder import Prompt

HASH_BYTES = 16


@dataclass(frozen=True)
class MediaSpan:
    """The positions [start, end) of one media token; `index` is its place in `Prompt.media`."""

    start: int
    end: int
    index: int


class PromptLayout:
    """A prompt position by position.

    Attributes:
        ids: int64 [positions], the token at each position, -1 where media stands.
        spans: the positions of the media, in order.
    """

    def __init__(self, prompt: Prompt, media_ids: Iterable[int]) -> None:
        placeholders, media = set(media_ids), iter(prompt.media)
        ids: list[int] = []
        self.spans: list[MediaSpan] = []
        for token in prompt.token_ids:
            if token in placeholders:
                positions = next(media).positions
                self.spans.append(MediaSpan(len(ids), len(ids) + positions, len(self.spans)))
                ids += [-1] * positions
            else:
                ids.append(token)
        self.ids: NDArray[np.int64] = np.array(ids, np.int64)

    def overlapping(self, start: int, end: int) -> list[MediaSpan]:
        """Return the spans that have positions in [start, end)."""
        return [span for span in self.spans if span.start < end and span.end > start]


class BlockHashes:
    """The block hashes of one request, computed on demand.

    Args:
        layout: the prompt's positions.
        media_hashes: a hash of the content of each media token.
        output_ids: the request's own list of generated tokens, which grows.
        block_size: positions in a block.
    """

    def __init__(
        self,
        layout: PromptLayout,
        media_hashes: Sequence[bytes],
        output_ids: Sequence[int],
        block_size: int,
    ) -> None:
        self.layout, self.media_hashes, self.output_ids = layout, media_hashes, output_ids
        self.block_size = block_size
        self._hashes: list[bytes] = []

    def first(self, count: int) -> list[bytes]:
        """Return the hashes of the first `count` blocks, all of whose tokens must be known."""
        while len(self._hashes) < count:
            self._hashes.append(self._next())
        return self._hashes[:count]

    def _next(self) -> bytes:
        start = len(self._hashes) * self.block_size
        end, prompt = start + self.block_size, len(self.layout.ids)
        digest = blake2b(self._hashes[-1] if self._hashes else b"", digest_size=HASH_BYTES)
        digest.update(self.layout.ids[start:end].tobytes())
        if end > prompt:
            tail = self.output_ids[max(0, start - prompt) : end - prompt]
            digest.update(np.array(tail, np.int64).tobytes())
        for span in self.layout.overlapping(start, end):
            digest.update(self.media_hashes[span.index])
            digest.update((start - span.start).to_bytes(8, "little", signed=True))
        return digest.digest()


def hash_tiles(prompt: Prompt) -> list[bytes]:
    """Hash the pixels of each tile with SHA-256, for which processors have instructions."""
    return [sha256(tile.data).digest()[:HASH_BYTES] for tile in prompt.pixels]


def hash_media(prompt: Prompt, tile_hashes: Sequence[bytes]) -> list[bytes]:
    """Hash the kind, the arrangement and the tiles of each media token."""
    hashes = []
    for item in prompt.media:
        digest = blake2b(f"{item.kind} {item.block}".encode(), digest_size=HASH_BYTES)
        for tile_hash in tile_hashes[item.first : item.first + item.tiles]:
            digest.update(tile_hash)
        hashes.append(digest.digest())
    return hashes
