"""The GitHub Actions workflow parses and runs only what the Makefile and .ci/ hold."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PACKAGES = ROOT / ".ci" / "apt-packages"

WORKFLOW: dict[Any, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]
EVENTS: dict[str, Any] = WORKFLOW[True]
"""What starts the workflow: YAML 1.1 reads the key `on` as true."""


def commands(job: str) -> list[str]:
    return [line for step in JOBS[job]["steps"] for line in step.get("run", "").splitlines()]


def targets(job: str) -> list[str]:
    return [line.split()[1] for line in commands(job) if line.startswith("make ")]


@pytest.mark.parametrize("job", JOBS)
def test_commands_exist(job: str) -> None:
    for line in commands(job):
        if line.startswith("make "):
            _, target, *variables = line.split()
            assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE), line
            for variable in variables:
                assert re.search(rf"^{variable.partition('=')[0]} *\?=", MAKEFILE, re.MULTILINE)
        else:
            assert re.match(r"(xargs )?sudo apt-get (update|install) ", line), line
            for path in re.findall(r"< (\S+)", line):
                assert ROOT / path == PACKAGES


def test_every_push_is_checked_on_every_supported_python() -> None:
    assert {"push", "pull_request"} <= set(EVENTS)
    assert targets("check") == ["install", "lint", "types", "test", "demo"]
    assert JOBS["check"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


def test_the_newest_dependencies_are_tried_every_week() -> None:
    (schedule,) = EVENTS["schedule"]
    *_, month, weekday = schedule["cron"].split()
    install = next(line for line in commands("newest") if line.startswith("make install"))

    assert (month, weekday) == ("*", "1")
    assert "schedule" in JOBS["newest"]["if"]
    assert "TORCH=torch" in install  # the Makefile's own value is a pin
    assert "CONSTRAINTS=/dev/null" in install
    assert targets("newest")[-2:] == ["test", "demo"]


def test_what_takes_long_is_looked_at_every_week() -> None:
    for job, target in (
        ("audit", "audit"),
        ("published", "test-package"),
        ("upgrade", "test-upgrade"),
        ("clients", "test-clients"),
    ):
        assert "schedule" in JOBS[job]["if"]
        assert targets(job)[-1] == target
    recipe = re.search(r"^audit:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert recipe is not None
    assert "pip-audit --requirement constraints.txt" in recipe[1]


def test_actions_are_pinned_to_major_versions() -> None:
    used = [step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step]

    assert used
    assert all(re.fullmatch(r"actions/[\w-]+@v\d+", name) for name in used)


def test_the_workflow_may_only_read() -> None:
    assert WORKFLOW["permissions"] == {"contents": "read"}


def test_packages_stand_in_one_file() -> None:
    names = PACKAGES.read_text().splitlines()

    assert len(names) == len(set(names)) > 5
    assert all(re.fullmatch(r"[a-z0-9.+-]+", name) for name in names)
    assert ".ci/apt-packages" in (ROOT / ".ci" / "run").read_text()
