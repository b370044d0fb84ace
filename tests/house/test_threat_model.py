"""docs/security.md: each threat names what stops it and tests that exist and are run."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
MODEL = PAGE.partition("## Threat model")[2]

ROW = re.compile(r"^\| (?!---|threat )(.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")

BORDERS = (
    "The camera network",
    "Redis",
    "The API",
    "Webhooks and messages",
    "Model files",
    "What a camera sees",
    "Agents",
)

LEFT_OUT = {"slow", "gpu", "soak", "clients"}
"""Marks of tests that `make test` does not run."""


@cache
def module(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text())


def marks(node: ast.AST) -> set[str]:
    """Return the names of the marks in an expression such as `pytest.mark.slow`."""
    return {
        each.attr
        for each in ast.walk(node)
        if isinstance(each, ast.Attribute)
        and isinstance(each.value, ast.Attribute)
        and each.value.attr == "mark"
    }


@pytest.mark.parametrize("border", BORDERS)
def test_every_border_has_threats_with_what_stops_them_and_a_test(border: str) -> None:
    section = re.search(rf"^### {border}\n(.*?)(?=^### |\Z)", MODEL, re.DOTALL | re.MULTILINE)
    assert section is not None
    rows = ROW.findall(section[1])

    assert len(rows) >= 3
    for threat, _, shown in rows:
        assert NAMED.findall(shown), threat


@pytest.mark.parametrize(("path", "name"), sorted(set(NAMED.findall(MODEL))))
def test_a_named_test_exists_and_is_run(path: str, name: str) -> None:
    body = module(path).body
    (test,) = (each for each in body if isinstance(each, ast.FunctionDef) and each.name == name)
    whole = [
        each for each in body if isinstance(each, ast.Assign) and "pytestmark" in ast.dump(each)
    ]

    found = {mark for node in [*test.decorator_list, *whole] for mark in marks(node)}
    assert not found & LEFT_OUT
