"""Find the recordings of the original implementation."""

import os
from pathlib import Path

RECORDINGS = Path(__file__).resolve().parents[1] / "golden"


def find_recordings() -> Path:
    """Return their folder: NVILA_GOLDEN, or tests/golden.

    Raises FileNotFoundError where it holds none.
    """
    folder = Path(os.environ.get("NVILA_GOLDEN") or RECORDINGS)
    if not (folder / "manifest.json").is_file():
        raise FileNotFoundError(f"{folder} has no manifest.json: it holds no recordings")
    return folder
