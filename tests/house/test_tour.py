"""docs/tour.md names every folder and top module, in the order of the import layers."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
TOUR = (ROOT / "docs" / "tour.md").read_text()
PACKAGES = ("nvila_core", "streamer", "workers")
GENERATED = {f"{name}/" for name in ("build", "dist", "shared", "data", "runs", "htmlcov")}

ROWS = re.findall(r"^\| `([\w/.]+)` \| (.+) \|$", TOUR, re.MULTILINE)


def rows(package: str) -> list[str]:
    """What the table of a package names, in its order, relative to the package."""
    return [name.removeprefix(f"{package}/") for name, _ in ROWS if name.startswith(f"{package}/")]


def layers(package: str) -> dict[str, int]:
    """Module -> the number of its layer, 0 at the top."""
    settings: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
    (contract,) = (
        contract
        for contract in settings["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers" and contract["containers"] == [package]
    )
    return {
        module: number
        for number, layer in enumerate(contract["layers"])
        for module in re.split(r" [|:] ", layer)
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_and_top_module_has_a_line(package: str) -> None:
    root = ROOT / package
    folders = {
        f"{path.parent.relative_to(root).as_posix()}/"
        for path in root.rglob("__init__.py")
        if path.parent != root
    }
    modules = {path.name for path in root.glob("*.py")} - {"__init__.py"}

    assert sorted(rows(package)) == sorted(folders | modules)


@pytest.mark.parametrize("package", PACKAGES)
def test_lines_stand_in_the_order_of_the_layers(package: str) -> None:
    known = layers(package)
    top = [name.removesuffix("/").removesuffix(".py") for name in rows(package)]
    numbers = [known[name.partition("/")[0]] for name in top]

    assert {name for name in top if "/" not in name} == set(known)
    assert numbers == sorted(numbers), list(zip(top, numbers, strict=True))


def test_other_folders_have_a_line() -> None:
    found = {
        f"{path.name}/"
        for path in ROOT.iterdir()
        if path.is_dir() and path.name[0] not in "._" and not path.name.endswith(".egg-info")
    }
    named = {name for name, _ in ROWS if name.count("/") == 1 and name.endswith("/")}

    assert found - GENERATED == named | {f"{package}/" for package in PACKAGES}


def test_named_paths_exist() -> None:
    paths = re.findall(r"`((?:\w+/)+(?:\w+\.py)?)`", TOUR)

    assert len(paths) > 60
    for path in paths:
        assert (ROOT / path).exists(), path
