"""Reference counts and contents of the blocks of the key-value cache.

Pure bookkeeping: a block is a number, and its content is known by its block hash (see
`prefix_keys`). A block with no owner but with known content stays cached until its memory is
needed; the least recently used one is evicted first. Paged caches and reuse by content follow vLLM
(Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
PagedAttention").
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """`num_blocks` blocks, each of which is empty, cached without an owner, or owned by requests.

    An owned block is cached too once its content has been registered.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._empty = list(range(num_blocks - 1, -1, -1))
        self._evictable: OrderedDict[int, None] = OrderedDict()
        """Cached blocks without an owner, the least recently used first."""
        self._ref_counts = [0] * num_blocks
        self._hash_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}

    @property
    def num_free_blocks(self) -> int:
        """Number of blocks that `allocate` can return, evictable ones included."""
        return len(self._empty) + len(self._evictable)

    @property
    def num_used_blocks(self) -> int:
        """Number of blocks that requests own."""
        return self.num_blocks - self.num_free_blocks

    @property
    def num_evictable_blocks(self) -> int:
        """Number of cached blocks without an owner."""
        return len(self._evictable)

    def find_cached(self, block_hashes: Iterable[bytes]) -> list[int]:
        """Return the cached blocks of the longest prefix of `block_hashes` that is cached."""
        blocks = []
        for block_hash in block_hashes:
            block = self._block_of.get(block_hash)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def count_evictable(self, blocks: Iterable[int]) -> int:
        """Return by how much `acquire(blocks)` would lower the number of free blocks."""
        return sum(block in self._evictable for block in blocks)

    def acquire(self, blocks: Iterable[int]) -> None:
        """Add an owner to blocks that `find_cached` returned."""
        for block in blocks:
            self._ref_counts[block] += 1
            self._evictable.pop(block, None)

    def allocate(self, count: int) -> list[int]:
        """Return `count` blocks with one owner and unknown content, in ascending order.

        The caller checks `num_free_blocks` first. Cached blocks are evicted when no empty one is
        left. Blocks that lie one after another are read without copying them
        (`KVCache.read_sequence`).
        """
        blocks = []
        for _ in range(count):
            if self._empty:
                block = self._empty.pop()
            else:
                block, _ = self._evictable.popitem(last=False)
                self._uncache(block)
            self._ref_counts[block] = 1
            blocks.append(block)
        return sorted(blocks)

    def cache(self, block: int, block_hash: bytes) -> None:
        """Register the content of an owned block, unless another block already caches it."""
        if block_hash not in self._block_of:
            self._uncache(block)
            self._hash_of[block], self._block_of[block_hash] = block_hash, block

    def free(self, blocks: Sequence[int]) -> None:
        """Remove an owner from `blocks`.

        The last block becomes evictable first, so that a prefix outlives what follows it.
        """
        for block in reversed(blocks):
            self._ref_counts[block] -= 1
            if self._ref_counts[block]:
                continue
            if block in self._hash_of:
                self._evictable[block] = None
            else:
                self._empty.append(block)

    def invalidate(self, blocks: Iterable[int]) -> list[int]:
        """Drop the registered content of owned `blocks`, because it is wrong.

        Returns:
            Those of `blocks` that have one owner only.
        """
        blocks = list(blocks)
        for block in blocks:
            self._uncache(block)
        return [block for block in blocks if self._ref_counts[block] == 1]

    def _uncache(self, block: int) -> None:
        block_hash = self._hash_of.pop(block, None)
        if block_hash is not None:
            del self._block_of[block_hash]
