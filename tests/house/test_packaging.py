"""pyproject, pins and Makefile agree; every import is declared; the wheel is complete."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PACKAGES = ("nvila_core", "streamer", "workers")
USED = ("discover", "mcp", "model", "mqtt", "otel", "postgres", "notify", "search")
"""The extras for users; `all` has them all, but what costs those who do not use it."""

NOT_IN_ALL = {"otel"}

EXTRAS = (*USED, "dev")
WITH_TORCH = {"triton"}
"""Brought along by PyTorch's builds for CUDA, in the one version that suits them."""

CHECKPOINT = ROOT / "nvila_core" / "demo" / "checkpoint"


@cache
def project() -> dict[str, Any]:
    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return loaded


@cache
def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def declared(*, extras: tuple[str, ...] = ()) -> list[Requirement]:
    texts = list(project()["dependencies"])
    for extra in extras:
        texts += project()["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def test_every_dependency_is_pinned_inside_its_range() -> None:
    for requirement in declared(extras=EXTRAS):
        assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_the_extras_are_complete() -> None:
    extras = project()["optional-dependencies"]
    (everything,) = (Requirement(text) for text in extras["all"])

    assert everything.name == project()["name"]
    assert everything.extras == set(USED) - NOT_IN_ALL
    assert set(extras) == {*EXTRAS, "all"}


def test_pins_hold_on_any_machine() -> None:
    assert all(version.local is None for version in pins().values())
    assert "@" not in (ROOT / "constraints.txt").read_text()


def test_one_torch_everywhere() -> None:
    wanted = f"torch=={pins()['torch']}"

    assert re.findall(r"^TORCH\s+\?= (\S+)$", (ROOT / "Makefile").read_text(), re.M) == [wanted]
    assert f"ARG TORCH={wanted}" in (ROOT / "docker" / "Dockerfile").read_text()


def imported(package: str) -> set[str]:
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - set(PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_import_is_a_declared_dependency(package: str) -> None:
    names = {canonicalize_name(requirement.name) for requirement in declared(extras=USED)}
    distributions = packages_distributions()
    for module in imported(package) - WITH_TORCH:
        providers = {canonicalize_name(name) for name in distributions.get(module, [module])}
        assert providers & names, f"{package} imports {module}, which pyproject does not name"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=ignore)

    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", tmp_path, source], check=True, timeout=100)

    (built,) = tmp_path.glob("*.whl")
    return built


def test_the_wheel_has_the_checkpoint_the_page_and_all_modules_but_training(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    weights = [path for path in CHECKPOINT.rglob("*") if path.is_file()]
    modules = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    web = [path for path in (ROOT / "streamer" / "web").rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in weights)
    assert any(path.suffix == ".html" for path in web)
    wanted = {path.relative_to(ROOT).as_posix() for path in weights + modules + web}
    training = {name for name in wanted if name.startswith("nvila_core/demo/training/")}
    assert training
    assert wanted - training <= held
    assert not training & held


def test_make_says_what_to_do_about_an_old_python(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && echo "Python 3.9.2" && exit\nexit 1\n')
    old.chmod(0o755)

    run = subprocess.run(
        ["make", "install", f"PYTHON={old}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert run.returncode != 0
    assert "Python 3.9.2, and 3.11, 3.12 or 3.13 is needed" in run.stderr
    assert not (tmp_path / ".venv").exists()


def test_ci_is_a_sound_script() -> None:
    script = ROOT / ".ci" / "run"

    assert script.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", script], check=True, timeout=10)
    assert "make test" in script.read_text()
