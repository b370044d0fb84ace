"""What stands at every LLM position of a prompt, and keys that tell equal beginnings.

Two prompts share the keys and values of their first blocks if and only if the same tokens and the
same tiles stand there, so a block's key is a digest of its content and of the key before it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import blake2b, sha256

import numpy as np
from numpy.typing import NDArray

from nvila_core.prompt.builder import Prompt

KEY_BYTES = 16


@dataclass(frozen=True)
class Span:
    """The positions [start, end) of one media token; `index` is its place in `Prompt.media`."""

    start: int
    end: int
    index: int


class Layout:
    """A prompt position by position.

    Attributes:
        ids: int64 [positions], the token at each position, -1 where media stands.
        spans: where the media stand, in order.
    """

    def __init__(self, prompt: Prompt, media_ids: Iterable[int]) -> None:
        marks, waiting = set(media_ids), iter(prompt.media)
        ids: list[int] = []
        self.spans: list[Span] = []
        for token in prompt.token_ids:
            if token in marks:
                positions = next(waiting).positions
                self.spans.append(Span(len(ids), len(ids) + positions, len(self.spans)))
                ids += [-1] * positions
            else:
                ids.append(token)
        self.ids: NDArray[np.int64] = np.array(ids, np.int64)

    def within(self, start: int, end: int) -> list[Span]:
        """The media that have positions in [start, end)."""
        return [span for span in self.spans if span.start < end and span.end > start]


class BlockKeys:
    """The keys of one request's blocks, made as far as they are asked for.

    Args:
        layout: of the prompt.
        media: a key for the content of each media token.
        generated: the request's own list of generated tokens, which grows.
        size: positions a block.
    """

    def __init__(
        self, layout: Layout, media: Sequence[bytes], generated: Sequence[int], size: int
    ) -> None:
        self.layout, self.media, self.generated, self.size = layout, media, generated, size
        self._keys: list[bytes] = []

    def first(self, count: int) -> list[bytes]:
        """The keys of the first `count` blocks, all of whose tokens must be known."""
        while len(self._keys) < count:
            self._keys.append(self._next())
        return self._keys[:count]

    def _next(self) -> bytes:
        start = len(self._keys) * self.size
        end, prompt = start + self.size, len(self.layout.ids)
        digest = blake2b(self._keys[-1] if self._keys else b"", digest_size=KEY_BYTES)
        digest.update(self.layout.ids[start:end].tobytes())
        if end > prompt:
            tail = self.generated[max(0, start - prompt) : end - prompt]
            digest.update(np.array(tail, np.int64).tobytes())
        for span in self.layout.within(start, end):
            digest.update(self.media[span.index])
            digest.update((start - span.start).to_bytes(8, "little", signed=True))
        return digest.digest()


def tile_keys(prompt: Prompt) -> list[bytes]:
    """A digest of each tile's pixels; SHA-256, for which processors have instructions."""
    return [sha256(tile.data).digest()[:KEY_BYTES] for tile in prompt.pixels]


def media_keys(prompt: Prompt, tiles: Sequence[bytes]) -> list[bytes]:
    """A key for each media token: its kind, its arrangement and its tiles."""
    keys = []
    for item in prompt.media:
        digest = blake2b(f"{item.kind} {item.block}".encode(), digest_size=KEY_BYTES)
        for tile in tiles[item.first : item.first + item.tiles]:
            digest.update(tile)
        keys.append(digest.digest())
    return keys
