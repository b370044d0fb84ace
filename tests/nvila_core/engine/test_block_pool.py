"""The pool: owners, reuse by content, and what goes first when room is needed."""

from hypothesis import given
from hypothesis import strategies as st

from nvila_core.engine.block_pool import BlockPool

A, B, C = b"a", b"b", b"c"


def filled(pool: BlockPool, *keys: bytes) -> list[int]:
    """Own a block for each key and publish it."""
    blocks = pool.take(len(keys))
    for block, key in zip(blocks, keys, strict=True):
        pool.publish(block, key)
    return blocks


def test_released_content_is_found_and_can_be_owned_again() -> None:
    pool = BlockPool(4)
    blocks = filled(pool, A, B)
    pool.release(blocks)
    assert (pool.available, pool.owned, pool.kept) == (4, 0, 2)
    assert pool.find([A, B, C]) == blocks
    assert pool.find([C, A]) == []
    pool.share(blocks[:1])
    assert (pool.available, pool.owned, pool.kept) == (3, 1, 1)
    assert pool.unowned(blocks) == 1


def test_the_tail_of_what_was_used_least_recently_goes_first() -> None:
    # given two prefixes, the older one of two blocks
    pool = BlockPool(3)
    old, new = filled(pool, A, B), filled(pool, C)
    pool.release(old)
    pool.release(new)
    # when one block is needed
    pool.take(1)
    # then the beginning of the old prefix and the new one are still there
    assert pool.find([A, B]) == old[:1]
    assert pool.find([C]) == new


def test_a_block_is_kept_while_anybody_owns_it() -> None:
    pool = BlockPool(2)
    blocks = filled(pool, A)
    pool.share(blocks)
    pool.release(blocks)
    assert pool.owned == 1
    pool.take(1)
    assert pool.available == 0
    assert pool.find([A]) == blocks


def test_equal_content_is_published_once() -> None:
    pool = BlockPool(2)
    first = filled(pool, A)
    second = filled(pool, A)
    assert pool.find([A]) == first
    pool.release(second)
    assert (pool.kept, pool.available) == (0, 1)


def test_disowned_content_is_not_found_again() -> None:
    pool = BlockPool(3)
    blocks = filled(pool, A, B)
    pool.share(blocks[:1])
    assert pool.disown(blocks) == blocks[1:]
    assert pool.find([A]) == []
    pool.release(blocks)
    pool.release(blocks[:1])
    assert (pool.available, pool.kept) == (3, 0)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=60))
def test_every_block_is_free_owned_or_kept(moves: list[tuple[int, int]]) -> None:
    pool, owned = BlockPool(5), []
    for move, number in moves:
        key = bytes([number])
        if move == 0 and pool.available:
            owned.append(pool.take(1))
        elif move == 1 and owned:
            pool.publish(owned[number % len(owned)][0], key)
        elif move == 2 and owned:
            pool.release(owned.pop(number % len(owned)))
        elif move == 3 and (found := pool.find([key])):
            pool.share(found)
            owned.append(found)
        assert pool.owned == len({block for blocks in owned for block in blocks})
        assert pool.owned + pool.available == 5
        assert 0 <= pool.kept <= pool.available
    for blocks in owned:
        pool.release(blocks)
    assert sorted(pool.take(5)) == [0, 1, 2, 3, 4]
