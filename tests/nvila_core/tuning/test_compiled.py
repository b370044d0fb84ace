"""torch.compile changes no answer; if it fails, the model still runs."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nvila_core import NVILA, Engine, SamplingParams, Video
from nvila_core.tuning.compiled import compile_layers
from nvila_core.tuning.compiled import main as try_compile

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler is installed"
)

PARAMS = SamplingParams(max_tokens=6, ignore_eos=True)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Use an empty cache of compiled code."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def clip(model: NVILA, frames: int, question: str = "What happens?", seed: int = 1) -> Any:
    """Return a prompt about frames of noise."""
    size = model.config.vision.image_size
    noise = np.random.default_rng(seed).integers(0, 256, (frames, size, size, 3), np.uint8)
    return model.prepare([Video(list(noise)), question], num_video_frames=frames)


def test_without_a_compiler_it_says_so(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")

    assert try_compile([str(tiny_folder), "--device", "cpu"]) == 1

    assert "C++ compiler" in json.loads(capsys.readouterr().out)["error"]


FAILING = """
import sys
from nvila_core import NVILA, NVILAError, SamplingParams
from nvila_core.tuning.compiled import compile_layers

model = NVILA.from_pretrained(sys.argv[1])
params = SamplingParams(max_tokens=6, ignore_eos=True)
before = model.generate(["What happens?"], params).token_ids
try:
    compile_layers(model)
except NVILAError as error:
    print(error)
assert model.generate(["What happens?"], params).token_ids == before
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@needs_compiler
def test_a_compiler_that_fails_leaves_the_model_as_it_was(
    tiny_folder: Path, tmp_path: Path
) -> None:
    # given a compiler that always fails, in a separate process, because PyTorch caches failures
    environment = os.environ | {"CXX": "false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}

    done = subprocess.run(
        [sys.executable, "-c", FAILING, str(tiny_folder)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )

    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert line.startswith("torch.compile cannot compile this model (")
    assert line.endswith("set compile to false.")


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_compiler
@pytest.mark.parametrize("quantize", [None, "int8"])
def test_requests_get_the_same_answers_without_waiting_for_the_compiler(
    tiny_folder: Path, cache: None, quantize: str | None
) -> None:
    plain, compiled = (NVILA.from_pretrained(tiny_folder, quantize=quantize) for _ in range(2))
    compile_layers(compiled)
    prompts = [clip(plain, frames, seed=frames) for frames in (1, 2, 3, 5)]

    # when requests have other numbers of rows and tiles than those it was compiled with
    with torch.compiler.set_stance("fail_on_recompile"), Engine(compiled, 3, 4096) as engine:
        handles = [engine.submit(prompt, PARAMS) for prompt in prompts]
        answers = [handle.result(120).token_ids for handle in handles]

    assert answers == [plain.generate(prompt, PARAMS).token_ids for prompt in prompts]
    compiled_now, plain_now = (model.logits(prompts[2]) for model in (compiled, plain))
    torch.testing.assert_close(compiled_now, plain_now, atol=1e-3, rtol=1e-3)
