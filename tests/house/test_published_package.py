"""The wheel as a user gets it: installed with its pins into an empty environment, and used."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import streamer
from tests.house.test_packaging import ROOT, wheel

__all__ = ["wheel"]

INSTALL = 3600.0
RUN = 1200.0
"""Seconds: pip downloads and unpacks PyTorch, and the machine may have other work."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * INSTALL + RUN)]


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of an environment into which pip has installed the wheel."""
    folder = tmp_path_factory.mktemp("published") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=INSTALL)
    pins = ["--constraint", str(ROOT / "constraints.txt")]
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *pins]
    done = subprocess.run([*pip, f"{wheel}[all]"], capture_output=True, text=True, timeout=INSTALL)
    if "Network is unreachable" in done.stderr or "NewConnectionError" in done.stderr:
        pytest.skip("no package registry can be reached")
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def run(program: Path, *arguments: str, home: Path) -> str:
    """Run a program of the environment, with nothing of this one but the PATH."""
    environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "HOME": str(home)}
    done = subprocess.run(
        [program, *arguments],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=RUN,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_package_fits_the_others(programs: Path, tmp_path: Path) -> None:
    assert "No broken requirements" in run(programs / "python", "-m", "pip", "check", home=tmp_path)


def test_the_program_says_its_version(programs: Path, tmp_path: Path) -> None:
    assert streamer.__version__ in run(programs / "streamer", "--version", home=tmp_path)


def test_the_demo_runs(programs: Path, tmp_path: Path) -> None:
    said = run(programs / "streamer", "demo", "--seconds", "20", home=tmp_path)

    assert said.count("A street with") >= 2, said
    assert re.search(r"^camera, now .*sign says", said, re.MULTILINE), said


def test_the_model_answers_without_the_service(programs: Path, tmp_path: Path) -> None:
    where = "import nvila_core, workers.gpu; print(nvila_core.__file__)"
    assert str(programs.parent) in run(programs / "python", "-c", where, home=tmp_path)
