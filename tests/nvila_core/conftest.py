"""Fixtures of the model's tests: recordings of the original, and tiny random models."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nvila_core import NVILA
from nvila_core.checkpoint.random_checkpoint import write_checkpoint
from tests.support.recordings import find_recordings

if not torch.cuda.is_available():
    # before Triton is imported: its functions are interpreted or compiled from then on
    os.environ["TRITON_INTERPRET"] = "1"

torch.set_num_threads(1)  # tiny models: a second thread mostly waits for the first


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Fail a parity test that skips: anyone must be able to check the claim."""
    report = yield
    if report.skipped and item.path.name == "test_golden.py":
        report.outcome = "failed"
        report.longrepr = f"a parity test must not skip: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of the recordings of the original implementation."""
    return find_recordings()


@pytest.fixture(scope="session")
def golden_models(golden: Path) -> dict[str, NVILA]:
    """Recorded checkpoints by name, loaded in float32."""
    folders = sorted((golden / "checkpoints").iterdir())
    return {folder.name: NVILA.from_pretrained(folder) for folder in folders}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoint of a random NVILA-Lite: tiles of 112 pixels, 9 tokens per tile."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "lite")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> NVILA:
    """The model in `tiny_folder`."""
    return NVILA.from_pretrained(tiny_folder)


class Pictures:
    """Random pictures, the same in every run."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(7)

    def array(self, width: int = 112, height: int = 112) -> Any:
        """Return uint8 [height, width, 3]."""
        return self.random.integers(0, 256, (height, width, 3), dtype=np.uint8)

    def image(self, width: int = 112, height: int = 112) -> Image.Image:
        """Return an RGB image."""
        return Image.fromarray(self.array(width, height))


@pytest.fixture
def pictures() -> Pictures:
    """A source of random pictures."""
    return Pictures()
