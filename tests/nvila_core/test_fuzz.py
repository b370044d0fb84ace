"""Hostile checkpoints: any config and any safetensors header either loads or raises
CheckpointError.
"""

import json
import resource
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from nvila_core import CheckpointError, PromptError
from nvila_core.checkpoint.loader import Checkpoint
from nvila_core.checkpoint.random_checkpoint import write_checkpoint
from nvila_core.checkpoint.weights import Weights, read_header
from nvila_core.models.projector import build_projector

FUZZ = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
FILES = [
    "config.json",
    "llm/config.json",
    "llm/tokenizer_config.json",
    "llm/added_tokens.json",
    "vision_tower/config.json",
    "vision_tower/preprocessor_config.json",
    "mm_projector/config.json",
]
HUGE = st.sampled_from([2**31 - 1, 2**63, 10**40, 1e308, -1, 0, float("inf"), float("nan")])
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), HUGE, st.floats(), st.text(max_size=8))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=6,
)
MAX_MEMORY = 400 * 2**20


def peak() -> int:
    """Return the peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint to damage."""
    return write_checkpoint(tmp_path_factory.mktemp("fuzz") / "victim")


@FUZZ
@given(data=st.data())
def test_any_value_in_any_field(victim: Path, data: st.DataObject) -> None:
    # given a good checkpoint in which one field holds anything
    path = victim / data.draw(st.sampled_from(FILES))
    good, before = path.read_text(), peak()
    values: dict[str, Any] = json.loads(good)
    field = data.draw(st.sampled_from(sorted(values)))
    values[field] = data.draw(VALUES)
    path.write_text(json.dumps(values))
    # when it is loaded, then it works or raises CheckpointError, in little memory
    try:
        checkpoint = Checkpoint.open(victim)
        checkpoint.load(torch.float32, torch.device("cpu"))
    except CheckpointError as error:
        assert len(str(error)) < 2000  # noqa: PT017
    except PromptError:
        pytest.fail("an error about prompts came out of loading")
    finally:
        path.write_text(good)
    assert peak() - before < MAX_MEMORY


@FUZZ
@given(content=st.one_of(st.binary(max_size=64), st.text(max_size=64).map(str.encode)))
def test_any_bytes_for_a_config(victim: Path, content: bytes) -> None:
    path = victim / "config.json"
    good = path.read_bytes()
    path.write_bytes(content)
    try:
        with pytest.raises(CheckpointError):
            Checkpoint.open(victim)
    finally:
        path.write_bytes(good)


def test_deeply_nested_json(victim: Path, tmp_path: Path) -> None:
    root = tmp_path / "deep"
    shutil.copytree(victim, root)
    (root / "config.json").write_text('{"a":' * 100_000)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Checkpoint.open(root)


def load_projector(path: Path) -> None:
    """Load the file as a projector's weights."""
    with torch.device("meta"):
        projector = build_projector("mlp_downsample", 4, 6)
    Weights(read_header(path), path).fill(projector, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def intact(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A good safetensors file."""
    path = tmp_path_factory.mktemp("intact") / "model.safetensors"
    save_file(build_projector("mlp_downsample", 4, 6).state_dict(), path)
    load_projector(path)
    return path.read_bytes()


def try_bytes(path: Path, content: bytes) -> None:
    before = peak()
    path.write_bytes(content)
    try:
        load_projector(path)
    except CheckpointError as error:
        assert str(path) in str(error)  # noqa: PT017
    assert peak() - before < MAX_MEMORY


@FUZZ
@given(data=st.data())
def test_flipped_bytes_of_a_header(intact: bytes, tmp_path: Path, data: st.DataObject) -> None:
    (length,) = struct.unpack("<Q", intact[:8])
    content = bytearray(intact)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    try_bytes(tmp_path / "model.safetensors", bytes(content))


@FUZZ
@given(data=st.data())
def test_any_header(intact: bytes, tmp_path: Path, data: st.DataObject) -> None:
    (length,) = struct.unpack("<Q", intact[:8])
    header: dict[str, Any] = json.loads(intact[8 : 8 + length])
    name = data.draw(st.sampled_from(sorted(header)))
    entry = data.draw(
        st.one_of(
            VALUES,
            st.fixed_dictionaries(
                {
                    "dtype": st.sampled_from(["F32", "BF16", "I64", "F8_E4M3", "X"]),
                    "shape": st.lists(st.integers(-1, 2**62), max_size=3),
                    "data_offsets": st.lists(st.integers(-1, 2**62), max_size=3),
                }
            ),
        )
    )
    text = json.dumps({**header, name: entry}).encode()
    try_bytes(
        tmp_path / "model.safetensors", struct.pack("<Q", len(text)) + text + intact[8 + length :]
    )


@FUZZ
@given(size=st.integers(0, 600), claimed=st.one_of(st.none(), st.integers(0, 2**64 - 1)))
def test_truncated_or_with_a_wrong_length(
    intact: bytes, tmp_path: Path, size: int, claimed: int | None
) -> None:
    content = intact[:size] if claimed is None else struct.pack("<Q", claimed) + intact[8:]
    try_bytes(tmp_path / "model.safetensors", content)
