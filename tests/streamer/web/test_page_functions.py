"""The functions of the web page, by Node's own test runner."""

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_functions_of_the_page() -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed: apt-get install nodejs")
    tests = sorted(path.name for path in HERE.glob("*.test.mjs"))
    run = subprocess.run(
        [node, "--import", "./resolve.mjs", "--test", *tests],
        cwd=HERE,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
