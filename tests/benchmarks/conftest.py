"""Programs in benchmarks/gpu import each other by name, as they run from there."""

import sys
from pathlib import Path

import pytest

GPU = str(Path(__file__).parents[2] / "benchmarks" / "gpu")

sys.path.append(GPU)  # for the imports of test modules


@pytest.fixture(autouse=True)
def _programs_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let programs import each other while a test runs.

    Test processes are forked from one that has imported this file, and have a path of their own.
    """
    monkeypatch.setattr(sys, "path", [*sys.path, GPU])
