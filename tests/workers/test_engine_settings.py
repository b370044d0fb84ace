"""What the settings say of the engine is what the gpu worker runs."""

from collections.abc import Iterator

import pytest
import torch

from streamer.settings import Settings
from workers import gpu


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_engine_is_as_the_settings_say(threads: None) -> None:
    settings = Settings(
        model="demo",
        device="cpu",
        max_num_seqs=3,
        kv_cache_tokens=2048,
        step_tokens=96,
        step_tiles=5,
        tile_cache_bytes=4096,
        tile_tolerance=0.01,
        threads=1,
    )

    engine = gpu._engine(settings)

    assert torch.get_num_threads() == 1
    assert (engine.max_num_seqs, engine.kv_cache_tokens) == (3, 2048)
    assert (engine.scheduler.step_tokens, engine.encoder.step_tiles) == (96, 5)
    assert (engine.tile_cache.max_bytes, engine.tile_cache.tolerance) == (4096, 0.01)
