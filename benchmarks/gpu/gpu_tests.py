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

if __name__ == "__main__":
    absent.install()
    room = ROOT / "tests/nvila_core"
    options = ["-o", "addopts=--import-mode=importlib", f"--rootdir={ROOT}", "-m", "gpu"]
    names = ("test_quantized_products.py", "test_fp8_rows.py")
    files = [str(room / "models" / name) for name in names]
    sys.exit(pytest.main([*options, f"--confcutdir={room}", *files, *sys.argv[1:]]))
