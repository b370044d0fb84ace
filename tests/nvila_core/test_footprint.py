"""What a checkpoint needs, told without loading it; the doctor's tests run it as a program."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nvila_core import NVILA, CheckpointError, NVILAError
from nvila_core.footprint import find_local, main, measure


def test_it_is_what_loading_takes(random_checkpoint: Path) -> None:
    found = measure(random_checkpoint, "cpu", "bfloat16", kv_cache_tokens=1000)

    model = NVILA.from_pretrained(random_checkpoint, dtype="bfloat16")
    parts = (model.vision, model.projector, model.language)
    loaded = sum(p.nbytes for part in parts for p in part.parameters())
    # a checkpoint also holds the layers of the tower that are never run
    assert loaded <= found.weights < 2 * loaded
    llm = model.config.llm
    width = llm["hidden_size"] // llm["num_attention_heads"]
    per_token = 2 * 2 * llm["num_hidden_layers"] * llm["num_key_value_heads"] * width
    assert found.kv_cache == 1000 * per_token
    assert found.needed == found.weights + found.kv_cache
    assert 0 < found.free <= found.total
    assert (found.device, found.dtype, found.gpu) == ("cpu", "bfloat16", None)


def test_wider_numbers_take_more(random_checkpoint: Path) -> None:
    small, large = (measure(random_checkpoint, "cpu", d, 0) for d in ("bfloat16", "float32"))
    assert large.weights == 2 * small.weights


def test_what_cannot_be_had(
    random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(random_checkpoint, broken)
    shutil.rmtree(broken / "mm_projector")
    with pytest.raises(CheckpointError, match="mm_projector"):
        measure(broken, "cpu", "auto", 0)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_local(str(tmp_path / "absent"))
    if not torch.cuda.is_available():
        with pytest.raises(NVILAError, match="No CUDA device"):
            measure(random_checkpoint, "cuda", "auto", 0)
    assert main([str(broken)]) == 1
    assert "mm_projector" in json.loads(capsys.readouterr().out)["error"]
    assert main([str(random_checkpoint), "--kv-cache-tokens", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_cache"] == 0


def test_a_repository_that_is_not_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_local("Efficient-Large-Model/NVILA-Lite-2B") is None
