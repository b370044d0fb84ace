"""Rules that no linter knows: imports, one home for each name, nothing tied to one machine."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from streamer.settings import Settings
from tests.support.import_graph import circles, read_imports, sources
from tests.support.installation import clean_environment

ROOT = Path(__file__).parents[2]
PACKAGES = ("nvila_core", "streamer", "workers")
SKIPPED = {".git", ".venv", ".hypothesis", "build", "dist", "shared", "__pycache__", "checkpoint"}

# written in two parts, so that this file does not break the rule
REGISTRIES = [
    "pypi" + ".org",
    "pythonhosted" + ".org",
    "download.pytorch" + ".org",
    "npmjs" + ".org",
    "npmjs" + ".com",
]
MACHINE_PATHS = [r"(?<![\w.])/" + name + "/" for name in ("work", "root", "tmp")]


@cache
def texts() -> list[tuple[Path, str]]:
    """Return the path and the content of every text file of the repository."""
    found = []
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        if SKIPPED & set(parts) or any(p.endswith(("_cache", ".egg-info")) for p in parts):
            continue
        if path.is_file() and path.stat().st_size < 2 << 20:
            try:
                found.append((path.relative_to(ROOT), path.read_text()))
            except UnicodeDecodeError:
                continue
    return found


@pytest.mark.parametrize("pattern", [*map(re.escape, REGISTRIES), *MACHINE_PATHS])
def test_nothing_is_tied_to_one_machine_or_registry(pattern: str) -> None:
    expression = re.compile(pattern)
    found = [str(path) for path, text in texts() if expression.search(text)]

    assert found == []


def test_imports_keep_the_layers() -> None:
    program = Path(sys.executable).with_name("lint-imports")

    run = subprocess.run(
        [program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=100
    )

    assert run.returncode == 0, run.stdout


def test_the_import_rules_have_no_exemptions() -> None:
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]

    assert "exclude_type_checking_imports" not in rules
    assert all("ignore_imports" not in contract for contract in rules["contracts"])


def test_no_modules_import_each_other() -> None:
    # import-linter compares siblings, so a package and a module inside it escape it
    assert circles(read_imports(sources(ROOT)).graph) == []


def test_a_package_and_its_module_are_a_circle_also_by_a_functions_import() -> None:
    # given a package whose function imports a module that imports another, which needs the package
    found = read_imports(
        {
            "streamer/cli/__init__.py": "def main():\n    from streamer.cli.app import run\n",
            "streamer/cli/app.py": "from streamer.cli import probe\n",
            "streamer/cli/probe.py": "from streamer.cli import running_for\n",
            "streamer/clock.py": "import time\nfrom .cli import app\n",
        }
    )

    assert circles(found.graph) == [["streamer.cli", "streamer.cli.app", "streamer.cli.probe"]]
    assert found.statements == 4
    assert found.folder_pairs() == {("streamer", "streamer/cli")}


# entry points of programs
PROGRAM_NAMES = {"main", "upgrade"}  # of programs, and of the steps that Alembic runs


def _names_of(node: ast.stmt) -> Iterator[str]:
    """Yield the classes, functions, constants and aliases that a statement of a module defines."""
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        yield node.name
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    yield from (
        each.id
        for each in targets
        if isinstance(each, ast.Name) and not each.id.islower()  # those are objects, such as tables
    )


def test_a_public_name_has_one_home() -> None:
    homes: dict[str, set[str]] = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            for name in _names_of(node):
                homes.setdefault(name, set()).add(path.relative_to(ROOT).as_posix())

    several = {
        name: sorted(found)
        for name, found in homes.items()
        if len(found) > 1 and not name.startswith("_") and name not in PROGRAM_NAMES
    }
    assert several == {}


HEAVY = {
    *("torch", "transformers", "llguidance", "tokenizers", "numpy", "av", "cv2", "PIL"),
    *("fastapi", "starlette", "uvicorn", "httpx", "alembic", "prometheus_client", "hypothesis"),
}
"""Packages that cost a good part of a second each, and that only some programs need."""


@pytest.mark.parametrize(
    ("program", "lacks"),
    [
        ("streamer --help", {*HEAVY, "sqlalchemy", "redis", "rq", "pydantic", "structlog"}),
        ("streamer streams", {*HEAVY, "sqlalchemy", "workers"}),
        ("workers.recorder.worker, streamer.timeline.vector_store", HEAVY),
        ("workers.ingest.worker, workers.gpu.worker", HEAVY),
    ],
)
def test_programs_start_without_what_they_do_not_need(
    program: str, lacks: set[str], settings: Settings
) -> None:
    run = "from streamer.cli import main; main()"
    if not program.startswith("streamer"):
        run = f"import {program}"
    code = (
        f"import atexit, sys; sys.argv = {program.split()!r}\n"
        f"atexit.register(lambda: print('imported', *({lacks!r} & set(sys.modules))))\n{run}"
    )

    done = subprocess.run(
        [sys.executable, "-c", code],
        env=clean_environment(STREAMER_REDIS_URL=settings.redis_url or ""),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert done.stdout.splitlines()[-1].split() == ["imported"]


SECONDS_TO_IMPORT = {"mcp", "openai", "schemathesis", "transformers"}


def test_collecting_the_tests_imports_nothing_that_takes_seconds() -> None:
    # every test process imports every test module, but runs only its share of the tests
    found = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in (ROOT / "tests").rglob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
        if name.partition(".")[0] in SECONDS_TO_IMPORT
    ]

    assert found == [], "import it in the tests or in a fixture that need it"


def test_the_http_client_is_light() -> None:
    heavy = {"torch", "redis", "rq", "av", "cv2", "numpy", "sqlalchemy", "fastapi", "workers"}
    code = f"import sys, streamer.http_client; print(*({heavy!r} & set(sys.modules)))"

    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )

    assert run.stdout.split() == []


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_are_packages(package: str) -> None:
    missing = [
        folder.relative_to(ROOT).as_posix()
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}
        if not (folder / "__init__.py").is_file()
    ]

    assert missing == []
