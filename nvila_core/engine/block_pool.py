"""Who owns which block of the key-value cache, and which blocks hold something worth finding again.

Pure bookkeeping: blocks are numbers, contents are known by their keys (see `prefix`). A block that
nobody owns but whose content is known stays findable until its place is needed; the one unused for
longest goes first. Paged caches and reuse by content follow vLLM (Kwon et al. 2023, "Efficient
Memory Management for Large Language Model Serving with PagedAttention").
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """`count` blocks, each of which is free, owned by one or more requests, or kept for reuse."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Owned by nobody, content known; least recently used first."""
        self._owners = [0] * count
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def available(self) -> int:
        """Blocks that `take` can give, those kept for reuse included."""
        return len(self._free) + len(self._kept)

    @property
    def owned(self) -> int:
        """Blocks that requests own."""
        return self.count - self.available

    @property
    def kept(self) -> int:
        """Blocks that nobody owns but that can still be found by content."""
        return len(self._kept)

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks that hold the first of `keys`, up to the first that is not there."""
        blocks = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def unowned(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` would no longer be available after `share`."""
        return sum(block in self._kept for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Become an owner of blocks that `find` gave."""
        for block in blocks:
            self._owners[block] += 1
            self._kept.pop(block, None)

    def take(self, count: int) -> list[int]:
        """Own `count` blocks of unknown content; there must be as many available."""
        taken = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._kept.popitem(last=False)
                self._forget(block)
            self._owners[block] = 1
            taken.append(block)
        return taken

    def publish(self, block: int, key: bytes) -> None:
        """Say what an owned block holds. Where another block is known to hold it, nothing
        happens."""
        if key not in self._block_of:
            self._forget(block)
            self._key_of[block], self._block_of[key] = key, block

    def release(self, blocks: Sequence[int]) -> None:
        """Own `blocks` no more. The last ones are the first to go: a prefix outlives its tails."""
        for block in reversed(blocks):
            self._owners[block] -= 1
            if self._owners[block]:
                continue
            if block in self._key_of:
                self._kept[block] = None
            else:
                self._free.append(block)

    def disown(self, blocks: Iterable[int]) -> list[int]:
        """Make the content of `blocks` unfindable: it is wrong. Those that have one owner only."""
        blocks = list(blocks)
        for block in blocks:
            self._forget(block)
        return [block for block in blocks if self._owners[block] == 1]

    def _forget(self, block: int) -> None:
        key = self._key_of.pop(block, None)
        if key is not None:
            del self._block_of[key]
