"""The tile cache: equal pixels always, similar pixels with a tolerance, never above its limit."""

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


def test_cached_features_are_found() -> None:
    cache = TileCache(10 * SIZE)
    assert cache.get(b"a") is None
    cache.put(b"a", FEATURES, picture())
    assert cache.get(b"a") is FEATURES
    assert (cache.bytes, len(cache)) == (SIZE, 1)


def test_the_least_recently_used_tile_is_evicted_first() -> None:
    cache = TileCache(2 * SIZE)
    for key in (b"a", b"b"):
        cache.put(key, FEATURES, picture())
    cache.get(b"a")
    cache.put(b"c", FEATURES, picture())
    assert cache.get(b"b") is None
    assert cache.get(b"a") is not None
    assert cache.bytes == 2 * SIZE


@pytest.mark.parametrize("max_bytes", [0, SIZE - 1])
def test_features_that_do_not_fit_are_not_cached(max_bytes: int) -> None:
    cache = TileCache(max_bytes, tolerance=0.1)
    cache.put(b"a", FEATURES, picture())
    assert (len(cache), cache.bytes) == (0, 0)
    assert cache.resolve([b"b"], picture()[None]) == [b"b"]


def test_without_a_tolerance_only_equal_pixels_count() -> None:
    cache = TileCache(10 * SIZE)
    cache.put(b"a", FEATURES, picture())
    assert cache.resolve([b"b"], picture()[None]) == [b"b"]


def test_a_tolerance_ignores_noise_but_not_a_small_object() -> None:
    # given a tile in the cache
    cache = TileCache(10 * SIZE, tolerance=0.02)
    cache.put(b"a", FEATURES, picture())
    # when it returns with noise, with an object of 3x3 pixels, and slightly brighter
    changed = picture()
    changed[30:33, 30:33] = 230
    pixels = np.stack([picture(noise=0.02), changed, picture(0.03), picture(0.05)])
    # then
    hashes = [b"noise", b"object", b"within", b"beyond"]
    assert cache.resolve(hashes, pixels) == [b"a", b"object", b"a", b"beyond"]


def test_slow_changes_do_not_add_up_unseen() -> None:
    cache = TileCache(10 * SIZE, tolerance=0.02)
    cache.put(b"0", FEATURES, picture())
    resolved = [cache.resolve([b"new"], picture(i * 0.01)[None])[0] for i in range(10)]
    assert resolved == [b"0"] * 5 + [b"new"] * 5


def test_a_tile_uses_its_own_features_else_those_of_the_nearest() -> None:
    cache = TileCache(10 * SIZE, tolerance=0.1)
    for key, level in ((b"a", 0.0), (b"b", 0.1)):
        cache.put(key, FEATURES, picture(level))
    assert cache.resolve([b"x", b"a"], np.stack([picture(0.09)] * 2)) == [b"b", b"a"]
