"""The block pool: reference counts, reuse by content, and the order of eviction."""

from hypothesis import given
from hypothesis import strategies as st

from nvila_core.engine.block_pool import BlockPool

A, B, C = b"a", b"b", b"c"


def filled(pool: BlockPool, *hashes: bytes) -> list[int]:
    """Allocate a block for each hash, and cache it."""
    blocks = pool.allocate(len(hashes))
    for block, block_hash in zip(blocks, hashes, strict=True):
        pool.cache(block, block_hash)
    return blocks


def test_freed_blocks_stay_cached_and_can_be_acquired_again() -> None:
    pool = BlockPool(4)
    blocks = filled(pool, A, B)
    pool.free(blocks)
    assert (pool.num_free_blocks, pool.num_used_blocks, pool.num_evictable_blocks) == (4, 0, 2)
    assert pool.find_cached([A, B, C]) == blocks
    assert pool.find_cached([C, A]) == []
    pool.acquire(blocks[:1])
    assert (pool.num_free_blocks, pool.num_used_blocks, pool.num_evictable_blocks) == (3, 1, 1)
    assert pool.count_evictable(blocks) == 1


def test_the_tail_of_the_least_recently_used_prefix_is_evicted_first() -> None:
    # given two prefixes, the older one of two blocks
    pool = BlockPool(3)
    old, new = filled(pool, A, B), filled(pool, C)
    pool.free(old)
    pool.free(new)
    # when one block is needed
    pool.allocate(1)
    # then the beginning of the old prefix and the new one are still there
    assert pool.find_cached([A, B]) == old[:1]
    assert pool.find_cached([C]) == new


def test_blocks_of_one_request_lie_one_after_another_where_they_can() -> None:
    # given a full pool of cached blocks, whose last are evicted first
    pool = BlockPool(6)
    pool.free(filled(pool, A, B, C, b"d"))
    # when a request takes the empty blocks and two that are evicted
    blocks = pool.allocate(4)
    # then they are in order
    assert blocks == [2, 3, 4, 5]


def test_a_block_is_not_evicted_while_it_has_an_owner() -> None:
    pool = BlockPool(2)
    blocks = filled(pool, A)
    pool.acquire(blocks)
    pool.free(blocks)
    assert pool.num_used_blocks == 1
    pool.allocate(1)
    assert pool.num_free_blocks == 0
    assert pool.find_cached([A]) == blocks


def test_equal_content_is_cached_once() -> None:
    pool = BlockPool(2)
    first = filled(pool, A)
    second = filled(pool, A)
    assert pool.find_cached([A]) == first
    pool.free(second)
    assert (pool.num_evictable_blocks, pool.num_free_blocks) == (0, 1)


def test_invalidated_content_is_not_found_again() -> None:
    pool = BlockPool(3)
    blocks = filled(pool, A, B)
    pool.acquire(blocks[:1])
    assert pool.invalidate(blocks) == blocks[1:]
    assert pool.find_cached([A]) == []
    pool.free(blocks)
    pool.free(blocks[:1])
    assert (pool.num_free_blocks, pool.num_evictable_blocks) == (3, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=60))
def test_every_block_is_either_free_or_used(moves: list[tuple[int, int]]) -> None:
    pool, owned = BlockPool(5), []
    for move, number in moves:
        block_hash = bytes([number])
        if move == 0 and pool.num_free_blocks:
            owned.append(pool.allocate(1))
        elif move == 1 and owned:
            pool.cache(owned[number % len(owned)][0], block_hash)
        elif move == 2 and owned:
            pool.free(owned.pop(number % len(owned)))
        elif move == 3 and (found := pool.find_cached([block_hash])):
            pool.acquire(found)
            owned.append(found)
        assert pool.num_used_blocks == len({block for blocks in owned for block in blocks})
        assert pool.num_used_blocks + pool.num_free_blocks == 5
        assert 0 <= pool.num_evictable_blocks <= pool.num_free_blocks
    for blocks in owned:
        pool.free(blocks)
    assert sorted(pool.allocate(5)) == [0, 1, 2, 3, 4]
