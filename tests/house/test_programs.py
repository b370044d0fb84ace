"""The programs in benchmarks/ and examples/ import: a rename must not break them silently."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = sorted((ROOT / "benchmarks").rglob("*.py"))
PROGRAMS = [*BENCHMARKS, *sorted((ROOT / "examples").glob("*.py"))]
PACKAGES = ("nvila_core", "streamer", "workers", "tests")
SIBLINGS = {path.stem: path for path in BENCHMARKS}


def imports(program: Path) -> Iterator[tuple[str, str | None]]:
    """Return (module, name) of each import, also those inside functions."""
    for node in ast.walk(ast.parse(program.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "an import is absolute"
            assert not node.level, "an import is absolute"
            yield from ((node.module, alias.name) for alias in node.names)


def defined(program: Path) -> set[str]:
    """Return the names that a program defines or imports at its top."""
    found = set()
    for node in ast.parse(program.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return found


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_imports_resolve(program: Path) -> None:
    for module, name in imports(program):
        if module in SIBLINGS and program.parent == SIBLINGS[module].parent:
            assert name is None or name in defined(SIBLINGS[module]), f"{module}.{name}"
        elif module.partition(".")[0] in PACKAGES:
            found = import_module(module)
            assert name is None or hasattr(found, name) or find_spec(f"{module}.{name}"), (
                f"{module}.{name}"
            )
        else:
            assert find_spec(module.partition(".")[0]), module


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["benchmarks", "benchmarks/gpu"])
def test_benchmarks_start(folder: str) -> None:
    """Run the top of every benchmark of a folder, all in one process."""
    names = ", ".join(path.stem for path in BENCHMARKS if path.parent == ROOT / folder)

    done = subprocess.run(
        [sys.executable, "-c", f"import {names}"],
        cwd=ROOT / folder,
        env={"PYTHONPATH": f"{ROOT}"},
        capture_output=True,
        text=True,
        timeout=280,
    )

    assert done.returncode == 0, done.stderr


def test_there_are_programs() -> None:
    assert len(PROGRAMS) > 20
