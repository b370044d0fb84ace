"""Run the tests of the model that need a GPU, on a machine that has PyTorch and pytest only.

    python benchmarks/gpu/gpu_tests.py [PYTEST'S OPTIONS]

The whole suite's fixtures need Redis and more; these tests do not.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import absent  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

ROOM = ROOT / "tests/nvila_core"


def main(options: list[str]) -> int:
    """Run the tests; return pytest's exit status, or 1 where they would all be skipped."""
    absent.install()
    if not (torch.cuda.is_available() or "--collect-only" in options):
        print("PyTorch sees no CUDA device, so there is nothing to test: see `nvidia-smi`.")
        return 1
    marked = [
        str(path)
        for path in sorted(ROOM.rglob("test_*.py"))
        if "pytest.mark.gpu" in path.read_text(encoding="utf-8")
    ]
    own = ["-o", "addopts=--import-mode=importlib", f"--rootdir={ROOT}", "-m", "gpu"]
    return pytest.main([*own, f"--confcutdir={ROOM}", *marked, *options])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
