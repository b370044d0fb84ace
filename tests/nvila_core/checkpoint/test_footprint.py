"""The reported memory footprint is what loading takes; the doctor's tests run it as a program."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from nvila_core import NVILA, CheckpointError, NVILAError
from nvila_core.checkpoint.footprint import main, measure_footprint, stored_bytes
from nvila_core.checkpoint.hub import find_downloaded
from nvila_core.checkpoint.loader import Checkpoint
from nvila_core.checkpoint.random_checkpoint import Shape, write_checkpoint
from nvila_core.models.quantize import Format


def test_the_footprint_is_what_loading_takes(random_checkpoint: Path) -> None:
    found = measure_footprint(random_checkpoint, "cpu", "bfloat16", kv_cache_tokens=1000)

    model = NVILA.from_pretrained(random_checkpoint, dtype="bfloat16")
    parts = (model.vision, model.projector, model.language)
    loaded = sum(p.nbytes for part in parts for p in part.parameters())
    # a checkpoint also holds the layers of the tower that are never run
    assert loaded <= found.weights < 2 * loaded
    llm = model.config.llm
    per_token = 2 * 2 * llm.num_hidden_layers * llm.num_key_value_heads * llm.head_dim
    assert found.kv_cache == 1000 * per_token
    assert found.needed == found.weights + found.kv_cache
    assert 0 < found.free <= found.total
    assert (found.device, found.dtype, found.gpu) == ("cpu", "bfloat16", None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_fewer_bits_take_what_loading_takes(tmp_path: Path, quantize: Format, dtype: str) -> None:
    # given widths that the 4-bit kernels take in groups of 64, in groups of 32, and not at all
    shape = Shape(hidden=64, inner=96, vision_hidden=48, vision_inner=72)
    folder = write_checkpoint(tmp_path / "model", shape)

    full, found = (measure_footprint(folder, "cpu", dtype, 1000, mode) for mode in (None, quantize))

    model = NVILA.from_pretrained(folder, dtype=dtype, quantize=quantize)
    plain = NVILA.from_pretrained(folder, dtype=dtype)
    stored = stored_bytes(Checkpoint.open(folder).llm, model.dtype, quantize)
    assert stored == weights_of(model.language)
    # the checkpoint also holds a layer of the tower that is never run
    spared = weights_of(plain.vision) - weights_of(model.vision)
    spared += weights_of(plain.language) - weights_of(model.language)
    assert spared < full.weights - found.weights < 2 * spared
    assert (found.quantize, found.kv_cache) == (quantize, full.kv_cache)


def weights_of(module: torch.nn.Module) -> int:
    """Return the bytes of loaded tensors; buffers of float32 or int64 are computed, not loaded."""
    computed = ("position_ids", "inv_freq", "original_inv_freq")
    state = [*module.named_parameters(), *module.named_buffers()]
    return sum(tensor.nbytes for name, tensor in state if not name.endswith(computed))


def test_wider_numbers_take_more(random_checkpoint: Path) -> None:
    small, large = (
        measure_footprint(random_checkpoint, "cpu", d, 0) for d in ("bfloat16", "float32")
    )
    assert large.weights == 2 * small.weights


def test_what_is_not_available(
    random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(random_checkpoint, broken)
    shutil.rmtree(broken / "mm_projector")
    with pytest.raises(CheckpointError, match="mm_projector"):
        measure_footprint(broken, "cpu", "auto", 0)
    with pytest.raises(CheckpointError, match="no such folder"):
        find_downloaded(str(tmp_path / "absent"))
    if not torch.cuda.is_available():
        with pytest.raises(NVILAError, match="No CUDA device"):
            measure_footprint(random_checkpoint, "cuda", "auto", 0)
    with pytest.raises(NVILAError, match="quantization 'int3'"):
        measure_footprint(random_checkpoint, "cpu", "auto", 0, "int3")
    assert main([str(broken)]) == 1
    assert "mm_projector" in json.loads(capsys.readouterr().out)["error"]
    assert main([str(random_checkpoint), "--kv-cache-tokens", "0"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_cache"] == 0


def test_a_repository_that_is_not_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert find_downloaded("Efficient-Large-Model/NVILA-Lite-2B") is None
