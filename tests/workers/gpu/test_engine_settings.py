"""The model worker runs its engine with the settings."""

from collections.abc import Iterator

import pytest
import torch
from structlog.testing import capture_logs

from nvila_core import SamplingParams
from nvila_core.checkpoint import footprint
from streamer.settings import Settings
from workers.gpu import worker as gpu
from workers.gpu.engine_backend import EngineBackend


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_engine_follows_the_settings(threads: None) -> None:
    settings = Settings(
        model="demo",
        device="cpu",
        max_num_seqs=3,
        kv_cache_tokens=2048,
        max_num_batched_tokens=96,
        step_tiles=5,
        tile_cache_bytes=4096,
        tile_tolerance=0.01,
        threads=1,
    )

    engine = gpu.load_engine(settings)

    assert torch.get_num_threads() == 1
    assert (engine.max_num_seqs, engine.kv_cache_tokens) == (3, 2048)
    assert (engine.scheduler.max_num_batched_tokens, engine.encoder.step_tiles) == (96, 5)
    assert (engine.tile_cache.max_bytes, engine.tile_cache.tolerance) == (4096, 0.01)


def test_a_worker_chooses_the_size_of_its_engine_and_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a machine that has little memory left, and settings without sizes
    monkeypatch.setattr(footprint, "main_memory", lambda: (100_000_000, 10**9))
    # when a worker loads the demo model
    with capture_logs() as logs:
        engine = gpu.load_engine(Settings(model="demo", device="cpu", dtype="float32"))
    # then a quarter of that memory is its cache, and the log says so
    (said,) = [line for line in logs if line["event"] == "engine_sized"]
    position = engine.model.config.kv_size * 4
    assert 0 < 25_000_000 - engine.kv_cache_tokens * position < 1024 * position
    assert said["kv_cache_tokens"] == engine.kv_cache_tokens
    assert (engine.max_num_seqs, said["max_num_seqs"]) == (32, 32)
    assert "0.1 GB free" in said["why"]


def test_a_worker_that_cannot_compile_warns_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")  # no compiler

    with capture_logs() as logs:
        engine = gpu.load_engine(
            Settings(model="demo", device="cpu", kv_cache_tokens=256, compile=True)
        )

    (warning,) = [line for line in logs if line["event"] == "not_compiled"]
    assert warning["log_level"] == "warning"
    assert "C++ compiler" in warning["reason"]
    with engine:
        done = engine.submit(["What?"], SamplingParams(max_tokens=2, ignore_eos=True)).result(60)
    assert done.usage.completion_tokens == 2


def test_step_sizes_default_to_those_of_the_device() -> None:
    settings = Settings(model="demo", device="cpu", kv_cache_tokens=256)

    stats = EngineBackend(gpu.load_engine(settings), settings).stats()
    assert (stats["max_num_batched_tokens"], stats["step_tiles"]) == (128, 16)
