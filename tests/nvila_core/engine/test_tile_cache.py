"""The tile cache: equal pixels always, like pixels when asked, and never more than its room."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nvila_core.engine.tile_cache import TileCache

FEATURES = torch.ones(4, 8)
SIZE = FEATURES.nbytes


def picture(level: float = 0.0, noise: float = 0.0) -> NDArray[np.uint8]:
    """One grey tile [64, 64, 3]; black is -1, white is 1."""
    levels = level + noise * np.random.default_rng(1).standard_normal((64, 64, 3))
    return ((levels + 1) * 127.5).round().astype(np.uint8)


def test_it_finds_what_it_was_given() -> None:
    cache = TileCache(10 * SIZE)
    assert cache.get(b"a") is None
    cache.put(b"a", FEATURES, picture())
    assert cache.get(b"a") is FEATURES
    assert (cache.bytes, len(cache)) == (SIZE, 1)


def test_what_was_not_used_for_longest_goes_first() -> None:
    cache = TileCache(2 * SIZE)
    for key in (b"a", b"b"):
        cache.put(key, FEATURES, picture())
    cache.get(b"a")
    cache.put(b"c", FEATURES, picture())
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert cache.bytes == 2 * SIZE


@pytest.mark.parametrize("room", [0, SIZE - 1])
def test_what_does_not_fit_is_not_kept(room: int) -> None:
    cache = TileCache(room, tolerance=0.1)
    cache.put(b"a", FEATURES, picture())
    assert (len(cache), cache.bytes) == (0, 0)
    assert cache.resolve([b"b"], picture()[None]) == [b"b"]


def test_without_a_tolerance_only_equal_pixels_count() -> None:
    cache = TileCache(10 * SIZE)
    cache.put(b"a", FEATURES, picture())
    assert cache.resolve([b"b"], picture()[None]) == [b"b"]


def test_with_a_tolerance_noise_is_overlooked_and_a_small_thing_is_not() -> None:
    # given a tile in the cache
    cache = TileCache(10 * SIZE, tolerance=0.02)
    cache.put(b"a", FEATURES, picture())
    # when it comes again with noise, with a thing of 3x3 pixels, and a little brighter
    thing = picture()
    thing[30:33, 30:33] = 230
    pixels = np.stack([picture(noise=0.02), thing, picture(0.03), picture(0.05)])
    # then
    keys = [b"noise", b"thing", b"within", b"beyond"]
    assert cache.resolve(keys, pixels) == [b"a", b"thing", b"a", b"beyond"]


def test_slow_changes_do_not_add_up_unseen() -> None:
    cache = TileCache(10 * SIZE, tolerance=0.02)
    cache.put(b"0", FEATURES, picture())
    resolved = [cache.resolve([b"new"], picture(i * 0.01)[None])[0] for i in range(10)]
    assert resolved == [b"0"] * 5 + [b"new"] * 5


def test_the_nearest_of_several_is_taken_and_its_own_key_first() -> None:
    cache = TileCache(10 * SIZE, tolerance=0.1)
    for key, level in ((b"a", 0.0), (b"b", 0.1)):
        cache.put(key, FEATURES, picture(level))
    assert cache.resolve([b"x", b"a"], np.stack([picture(0.09)] * 2)) == [b"b", b"a"]
