"""The pool: owners, reuse by content, and what goes first when room is needed."""

from hypothesis import given
from hypothesis import strategies as st

from nvila_core.engine.block_pool import BlockPool

A, B, C = b"a", b"b", b"c"


def filled(pool: BlockPool, *keys: bytes) -> list[int]:
    """Own a block for each key and publish it."""
    blocks = pool.allocate(len(keys))
    for block, key in zip(blocks, keys, strict=True):
        pool.cache(block, key)
    return blocks


def test_released_content_is_found_and_can_be_owned_again() -> None:
    pool = BlockPool(4)
    blocks = filled(pool, A, B)
    pool.free(blocks)
    assert (pool.num_free_blocks, pool.num_used_blocks, pool.num_evictable_blocks) == (4, 0, 2)
    assert pool.find_cached([A, B, C]) == blocks
    assert pool.find_cached([C, A]) == []
    pool.acquire(blocks[:1])
    assert (pool.num_free_blocks, pool.num_used_blocks, pool.num_evictable_blocks) == (3, 1, 1)
    assert pool.count_evictable(blocks) == 1


def test_the_tail_of_what_was_used_least_recently_goes_first() -> None:
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


def test_a_block_is_kept_while_anybody_owns_it() -> None:
    pool = BlockPool(2)
    blocks = filled(pool, A)
    pool.acquire(blocks)
    pool.free(blocks)
    assert pool.num_used_blocks == 1
    pool.allocate(1)
    assert pool.num_free_blocks == 0
    assert pool.find_cached([A]) == blocks


def test_equal_content_is_published_once() -> None:
    pool = BlockPool(2)
    first = filled(pool, A)
    second = filled(pool, A)
    assert pool.find_cached([A]) == first
    pool.free(second)
    assert (pool.num_evictable_blocks, pool.num_free_blocks) == (0, 1)


def test_disowned_content_is_not_found_again() -> None:
    pool = BlockPool(3)
    blocks = filled(pool, A, B)
    pool.acquire(blocks[:1])
    assert pool.invalidate(blocks) == blocks[1:]
    assert pool.find_cached([A]) == []
    pool.free(blocks)
    pool.free(blocks[:1])
    assert (pool.num_free_blocks, pool.num_evictable_blocks) == (3, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=60))
def test_every_block_is_free_owned_or_kept(moves: list[tuple[int, int]]) -> None:
    pool, owned = BlockPool(5), []
    for move, number in moves:
        key = bytes([number])
        if move == 0 and pool.num_free_blocks:
            owned.append(pool.allocate(1))
        elif move == 1 and owned:
            pool.cache(owned[number % len(owned)][0], key)
        elif move == 2 and owned:
            pool.free(owned.pop(number % len(owned)))
        elif move == 3 and (found := pool.find_cached([key])):
            pool.acquire(found)
            owned.append(found)
        assert pool.num_used_blocks == len({block for blocks in owned for block in blocks})
        assert pool.num_used_blocks + pool.num_free_blocks == 5
        assert 0 <= pool.num_evictable_blocks <= pool.num_free_blocks
    for blocks in owned:
        pool.free(blocks)
    assert sorted(pool.allocate(5)) == [0, 1, 2, 3, 4]
