"""Fixtures of the model's tests: the golden recordings where they are at hand, and tiny random
models.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nvila_core import NVILA
from nvila_core.checkpoint.random_checkpoint import write_checkpoint

torch.set_num_threads(1)  # tiny models: a second thread mostly waits for the first

REPOSITORY = Path(__file__).resolve().parents[2]


def find_golden() -> Path | None:
    """NVILA_GOLDEN, or `shared/golden` in the repository or in a folder above it."""
    if given := os.environ.get("NVILA_GOLDEN"):
        return Path(given)
    folders = (folder / "shared" / "golden" for folder in (REPOSITORY, *REPOSITORY.parents))
    return next((folder for folder in folders if (folder / "manifest.json").is_file()), None)


@pytest.fixture(scope="session")
def golden() -> Path:
    """The recordings of the original implementation."""
    folder = find_golden()
    if folder is None:
        pytest.skip("no recordings of the original: set NVILA_GOLDEN to their folder")
    assert (folder / "manifest.json").is_file(), f"NVILA_GOLDEN={folder} holds no manifest.json"
    return folder


@pytest.fixture(scope="session")
def golden_models(golden: Path) -> dict[str, NVILA]:
    """Every recorded checkpoint, loaded in float32."""
    folders = sorted((golden / "checkpoints").iterdir())
    return {folder.name: NVILA.from_pretrained(folder) for folder in folders}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random NVILA-Lite: 112-pixel tiles, 9 tokens a tile."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "lite")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> NVILA:
    """The model of `tiny_folder`."""
    return NVILA.from_pretrained(tiny_folder)


class Pictures:
    """Random pictures, the same in every run."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(7)

    def array(self, width: int = 112, height: int = 112) -> Any:
        """uint8 [height, width, 3]."""
        return self.random.integers(0, 256, (height, width, 3), dtype=np.uint8)

    def image(self, width: int = 112, height: int = 112) -> Image.Image:
        """An RGB image."""
        return Image.fromarray(self.array(width, height))


@pytest.fixture
def pictures() -> Pictures:
    """A source of random pictures."""
    return Pictures()
