"""The README and docs/ name commands, options, files and links that exist."""

import inspect
import re
import shlex
import xml.etree.ElementTree as ElementTree
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from typer.cli import app as typer_program
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name / "README.md" for name in ("examples", "nvila_core", "nvila_core/demo")),
]

FOREIGN = {
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_DRIVER_CAPABILITIES",
    "OLLAMA_CONTEXT_LENGTH",
    "PIP_EXTRA_INDEX_URL",
}
"""Names that belong to other programs."""

ids = [page.relative_to(ROOT).as_posix() for page in PAGES]


def shell_lines(page: Path) -> list[str]:
    """Return the commands of a page: lines of `sh` blocks without comments, and `code spans`."""
    text = page.read_text()
    lines = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        lines += re.sub(r"\\\n\s*", " ", block).splitlines()
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    return [line for line in lines if line and not line.startswith("#")]


@cache
def commands() -> dict[str, set[str]]:
    """Return every command of `streamer` and its options."""
    from streamer.cli.app import app

    group = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        members = getattr(command, "commands", {}).values() or [command]
        found[name] = {
            option
            for member in members
            for param in member.params
            for option in param.opts + param.secondary_opts
        }
    return found


def test_the_readme_opens_with_the_two_commands() -> None:
    first = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)

    assert first is not None
    assert [line.split("#")[0].strip() for line in first[1].splitlines()] == [
        "make demo",
        "make test",
    ]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for line in shell_lines(page):
        if match := re.match(r"make ([a-z-]+)", line):
            assert match[1] in targets, line


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_streamer_commands_and_options_exist(page: Path) -> None:
    for line in shell_lines(page):
        if not re.match(r"streamer [a-z]+( |$)", line):
            continue
        words = shlex.split(line, comments=True)
        assert words[1] in commands(), line
        for word in words[2:]:
            if word.startswith("--"):
                assert word.split("=")[0] in commands()[words[1]], line


def anchors(page: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_programs_and_folders_exist(page: Path) -> None:
    roots = "benchmarks|docker|examples|nvila_core|streamer|tests|workers"
    for line in shell_lines(page):
        for path in re.findall(rf"(?<![\w./:])((?:{roots})/[\w/]*(?:\.py)?)(?![\w./*])", line):
            assert (ROOT / path).exists(), line


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_modules_exist(page: Path) -> None:
    for line in shell_lines(page):
        for module in re.findall(r"\bpython -m ((?:nvila_core|streamer|workers)[\w.]*)", line):
            assert find_spec(module.rstrip(".")), line


@cache
def names_in_code() -> set[str]:
    """Every word of the code, the settings and the recordings' manifest."""
    found: set[str] = set()
    for folder in ("nvila_core", "streamer", "workers", "tests", "benchmarks", "configs", "docker"):
        for suffix in (".py", ".yaml", ".json"):
            for path in (ROOT / folder).rglob(f"*{suffix}"):
                if path.stat().st_size < 1 << 18:
                    found |= set(re.findall(r"\w+", path.read_text()))
    return found


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_names_exist_in_the_code(page: Path) -> None:
    """A name with an underscore in a `code span` is one of the code, not an old one."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for span in re.findall(r"`([^`]+)`", prose):
        for name in re.findall(r"(?<![\w./])[A-Za-z]+_\w*[a-zA-Z0-9](?![\w*])", span):
            known = name.removeprefix("streamer_worker_") in names_in_code()
            assert known or (ROOT / name).exists() or name in FOREIGN, f"{name} in `{span}`"


def test_the_picture_is_a_picture() -> None:
    root = ElementTree.parse(ROOT / "docs" / "frame-path.svg").getroot()

    assert root.tag.endswith("svg")
    assert "frame-path.svg" in (ROOT / "docs" / "architecture.md").read_text()


def test_the_architecture_names_every_redis_key() -> None:
    from streamer import redis_keys

    text = (ROOT / "docs" / "architecture.md").read_text()
    fixed = [v for k, v in vars(redis_keys).items() if k.isupper() and k != "KEY_PREFIX"]
    made = [
        function(*"xx"[: function.__code__.co_argcount])
        for function in vars(redis_keys).values()
        if inspect.isfunction(function)
    ]
    for key in [*fixed, *(key.split("x")[0] for key in made)]:
        assert f"`{key}" in text, key


def test_the_page_of_commands_is_up_to_date() -> None:
    arguments = ["streamer.cli.app", "utils", "docs", "--name", "streamer"]
    written = CliRunner().invoke(typer_program, [*arguments, "--title", "Command line"])
    assert written.exit_code == 0
    assert written.stdout.strip() == (ROOT / "docs" / "cli.md").read_text().strip(), (
        "run `make docs`"
    )
