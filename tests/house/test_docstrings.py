"""The examples in docstrings run, and print what they say."""

import ast
import doctest
import importlib
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("nvila_core", "streamer", "workers")
NODES = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def sources() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def docstrings() -> list[tuple[str, str]]:
    """Return the module name and the text of every docstring."""
    return [
        (module_name(path), text)
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, NODES) and (text := ast.get_docstring(node))
    ]


MODULES = sorted(
    module_name(path) for path in sources() if ">>>" in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name: str) -> None:
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    report: list[str] = []

    for example in doctest.DocTestFinder(exclude_empty=True).find(module, name):
        runner.run(example, out=report.append)

    assert runner.tries > 0
    assert runner.failures == 0, "".join(report)


def test_code_in_docstrings_is_an_example_that_runs() -> None:
    heading = re.compile(r"^ *Examples?:$", re.MULTILINE)
    bare = re.compile(r"^ +(from [\w.]+ import |import \w+$)", re.MULTILINE)

    unrun = {
        module
        for module, text in docstrings()
        if (heading.search(text) and ">>>" not in text) or bare.search(text)
    }

    assert not unrun


def test_the_three_entry_points_have_an_example() -> None:
    assert {"nvila_core.model", "nvila_core.engine.engine", "nvila_core"} <= set(MODULES)
