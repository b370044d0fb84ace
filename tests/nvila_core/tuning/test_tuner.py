"""`tune` measures real work, writes a usable settings file, and never makes the engine slower."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from nvila_core import NVILA, Engine, NVILAError, cli
from nvila_core.models.memory import size_engine
from nvila_core.models.quantize import Linear8
from nvila_core.tuning import tuner as tune
from nvila_core.tuning.settings_file import EngineSettings, Tuning, check_writable, write_settings
from nvila_core.tuning.step_timer import Load, StepTimer, cheapest, sweep
from nvila_core.tuning.tuner import Tuner, decided, seconds_for
from streamer.settings import CONFIG_VARIABLE, Settings, load_settings

DEFAULTS = EngineSettings.default(torch.device("cpu"))


class Clock:
    """A clock that only advances by the cost of simulated work."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def threads() -> Iterator[int]:
    """PyTorch's number of threads, restored afterwards."""
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def costing(clock: Clock, cost: Callable[[int], float]) -> Callable[[int], float]:
    def time_size(size: int) -> float:
        clock.now += cost(size)
        return cost(size)

    return time_size


def test_a_sweep_measures_while_time_lasts(clock: Clock) -> None:
    costs = sweep(costing(clock, lambda size: 2 + size), [1, 2, 4, 8, 16, 32], 30, clock)

    assert costs == {1: 3, 2: 2, 4: 1.5, 8: 1.25}  # 16 would have taken 20 of the 13 s left
    assert clock.now <= 30


def test_a_sweep_always_measures_something_and_stops_where_memory_ends(clock: Clock) -> None:
    assert sweep(costing(clock, lambda size: 99), [4, 8], 1, clock) == {4: 99 / 4}

    def small(size: int) -> float:
        if size > 2:
            raise torch.OutOfMemoryError
        return 1.0

    assert sweep(small, [1, 2, 4, 8], 60, clock) == {1: 1, 2: 0.5}


def test_the_smallest_size_that_is_cheap_enough_is_taken() -> None:
    assert cheapest({1: 2.0, 2: 1.02, 4: 1.0, 8: 1.5}, 0.05, 16) == 2
    assert cheapest({1: 2.0, 2: 1.02, 4: 1.0, 8: 1.5}, 0.01, 16) == 4
    assert cheapest({1: 2.0, 2: 1.5}, 0.05, 16) == 16  # larger ones were not measured
    assert cheapest({16: 2.0, 32: 1.0}, 0.05, 16) == 32


@pytest.mark.parametrize(
    ("pairs", "better"),
    [
        ([1.5, 1.4, 1.6], True),
        ([1.04, 1.05, 1.06], True),
        ([1.0, 1.01, 1.02], False),
        ([0.8, 0.9, 1.5, 1.6, 1.7], False),  # luck
        ([0.5, 0.6, 0.7], False),
    ],
)
def test_only_a_clear_gain_counts(pairs: list[float], better: bool) -> None:
    assert decided(pairs) is better


def test_the_timer_times_real_steps(tiny: NVILA) -> None:
    timer = StepTimer(tiny, 4096)

    assert timer.tiles(2) > 0
    assert timer.prefill(64) > 0
    assert timer.decode(timer.max_sequences()) > 0
    assert timer.request(Load(8, 4), 1, 32, 2) > 0


def test_requests_are_really_answered(tiny: NVILA, threads: int) -> None:
    prompts = [tune.noise_clip(tiny, 2, np.random.default_rng(0)) for _ in range(3)]
    before = torch.get_num_threads()

    assert seconds_for(replace(DEFAULTS, threads=1, kv_cache_tokens=2048), tiny, prompts, 4) > 0

    assert torch.get_num_threads() == before


def test_defaults_are_those_of_the_service(tiny: NVILA) -> None:
    service = {f.name: getattr(Settings(), f.name) for f in fields(DEFAULTS)}
    chosen = ("max_num_seqs", "kv_cache_tokens", "max_num_batched_tokens", "step_tiles")
    assert asdict(DEFAULTS) | dict.fromkeys(chosen) == service

    # and where the service leaves the size to the memory, that is the same on a processor
    size = size_engine("cpu", 10**11, 1000)
    assert (size.max_num_seqs, size.kv_cache_tokens) == (
        DEFAULTS.max_num_seqs,
        DEFAULTS.kv_cache_tokens,
    )

    # and where the service leaves the step sizes to the engine, the engine uses the same
    engine = Engine(tiny, kv_cache_tokens=2048)
    taken = (engine.stats()["max_num_batched_tokens"], engine.stats()["step_tiles"])
    assert taken == (DEFAULTS.max_num_batched_tokens, DEFAULTS.step_tiles)


def test_steps_are_larger_on_a_gpu() -> None:
    gpu = EngineSettings.default(torch.device("cuda", 1), "int4")

    assert (gpu.max_num_batched_tokens, gpu.step_tiles, gpu.quantize) == (2048, 32, "int4")
    assert (DEFAULTS.max_num_batched_tokens, DEFAULTS.step_tiles) == (128, 16)
    assert EngineSettings.default(torch.device("meta")) == DEFAULTS


def test_a_minute_of_tuning_in_a_second(tiny_folder: Path, threads: int) -> None:
    said: list[str] = []
    torch.set_num_threads(1)

    tuning = Tuner(
        lambda dtype: NVILA.from_pretrained(tiny_folder, "cpu", dtype), 1, said.append
    ).run()

    assert tuning.gain == 1 or tuning.gain >= tune.MIN_GAIN
    if tuning.gain == 1:
        assert tuning.settings == DEFAULTS
    assert tuning.settings.kv_cache_tokens >= 256
    assert set(tuning.notes) <= set(said)
    assert any("Prompt tokens in a step" in note for note in tuning.notes)
    assert all(note[0].isupper() and note.endswith(".") for note in tuning.notes), "sentences"
    assert torch.get_num_threads() == 1


def test_settings_that_are_slower_are_not_written(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    # given a search that finds slow settings
    worst = replace(DEFAULTS, max_num_batched_tokens=8, max_num_seqs=1)
    monkeypatch.setattr(Tuner, "_sizes", lambda self, found, timer: worst)
    torch.set_num_threads(1)

    tuning = Tuner(lambda dtype: NVILA.from_pretrained(tiny_folder, "cpu", dtype), 1).run()

    # then the comparison with real requests rejects them
    assert tuning.gain == 1
    assert tuning.settings == DEFAULTS, "the size of the cache too"
    assert "the defaults stay" in tuning.summary


def test_no_other_dtype_is_tried_where_bfloat16_is_the_default(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    # given a processor on which "auto" is bfloat16
    loaded: list[str] = []

    def load(dtype: str) -> NVILA:
        loaded.append(dtype)
        return NVILA.from_pretrained(tiny_folder, "cpu", "bfloat16")

    monkeypatch.setattr(Tuner, "_sizes", lambda self, found, timer: found)

    # when it is tuned
    tuning = Tuner(load, 1).run()

    # then no second model is loaded, and the setting stays
    assert loaded == ["auto"]
    assert tuning.settings.dtype == "auto"
    assert any(note.startswith("Dtype: bfloat16, because") for note in tuning.notes)


@pytest.mark.parametrize("sequences", [1, 8, 256])
def test_a_gain_takes_no_more_memory_than_the_requests_can_use(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, threads: int, sequences: int
) -> None:
    # given settings that win
    better = replace(DEFAULTS, max_num_seqs=sequences)
    monkeypatch.setattr(Tuner, "_sizes", lambda self, found, timer: better)
    monkeypatch.setattr(Tuner, "_compare", lambda self, found, model, load: [1.5, 1.6, 1.7])

    tuner = Tuner(lambda dtype: NVILA.from_pretrained(tiny_folder, "cpu", dtype), 1)
    tuning = tuner.run()

    assert tuning.gain == 1.6
    longest = tuner.model.max_model_len
    assert tuning.settings.kv_cache_tokens <= max(65536, 2 * sequences * longest)
    assert any("MiB" in note for note in tuning.notes)


def test_the_file_is_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tuned.yaml"
    found = replace(
        DEFAULTS, quantize="int8", dtype="bfloat16", threads=3, max_num_batched_tokens=96
    )
    tuning = Tuning(found, 1.25, [1.2, 1.25, 1.3], ["a note: with a colon"])
    monkeypatch.setenv(CONFIG_VARIABLE, str(path))

    for _ in range(2):  # its own file may be replaced
        write_settings(path, tuning, "some/model", "cpu", {"fps": 2.0, "dtype": "float16"})

    loaded = load_settings(path)
    assert (loaded.model, loaded.device, loaded.fps) == ("some/model", "cpu", 2.0)
    assert {f.name: getattr(loaded, f.name) for f in fields(found)} == asdict(found)
    assert "1.25 times" in path.read_text()
    assert path.stat().st_mode & 0o077 == 0


def test_a_file_of_the_users_own_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("fps: 3\n")

    for wrong in (path, tmp_path, tmp_path / "nowhere" / "x.yaml"):
        with pytest.raises(NVILAError, match="give --out"):
            check_writable(wrong)

    assert path.read_text() == "fps: 3\n"


def test_the_command_measures_the_model_as_it_will_be_used_and_writes_a_file(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    threads: int,
) -> None:
    out = tmp_path / "tuned.yaml"
    measured: list[NVILA] = []

    class Spy(StepTimer):
        def __init__(self, model: NVILA, positions: int) -> None:
            measured.append(model)
            super().__init__(model, positions)

    monkeypatch.setattr(tune, "StepTimer", Spy)

    arguments = ["--model", str(tiny_folder), "--device", "cpu", "--out", str(out)]
    code = cli.main(["tune", "--seconds", "0.5", "--quantize", "int8", *arguments])

    assert code == 0
    printed = capsys.readouterr().out
    assert "defaults" in printed
    assert str(out) in printed
    written = yaml.safe_load(out.read_text())
    assert (written["model"], written["quantize"]) == (str(tiny_folder), "int8")
    assert measured
    for model in measured:
        assert any(isinstance(part, Linear8) for part in model.language.modules())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "nowhere/"], "nowhere"),
        (["--seconds", "0"], "more than 0"),
        (["--seconds", "nan"], "more than 0"),
        (["--device", "abacus"], "abacus"),
        (["--out", "no/such/folder.yaml"], "give --out"),
    ],
)
def test_bad_input_is_one_sentence(
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)

    code = cli.main(["tune", "--model", str(tiny_folder), *arguments])

    printed = capsys.readouterr()
    assert (code, printed.out) == (1, "")
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
