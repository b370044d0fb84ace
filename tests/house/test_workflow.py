"""The GitHub Actions workflow parses and runs only what the Makefile and .ci/ hold."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PACKAGES = ROOT / ".ci" / "apt-packages"
INSTALL_TOOLS = ROOT / ".ci" / "install-tools"
RUN = (ROOT / ".ci" / "run").read_text()

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
            assert line == "sudo .ci/install-tools", line


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
        ("slow", "test-all"),
    ):
        assert "schedule" in JOBS[job]["if"]
        assert targets(job)[-1] == target
    assert "pip-audit --requirement constraints.txt" in recipe("audit")


def recipe(target: str) -> str:
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert found is not None
    return found[1]


def test_a_cluster_suffers_faults_at_every_push() -> None:
    assert JOBS["cluster"]["if"] == JOBS["check"]["if"] == "github.event_name != 'schedule'"
    assert targets("cluster") == ["install", "test-cluster"]
    assert commands("cluster").index("sudo .ci/install-tools") == 0  # PostgreSQL
    # and where .ci/run may make a network
    assert "make test-cluster" in RUN
    assert "-m tests.cluster --seed 1 --drills 0 --minutes 1 " in recipe("test-cluster")


def test_the_suite_with_the_slow_tests_has_the_release_that_some_of_them_start() -> None:
    for job in ("slow", "upgrade"):
        (checkout,) = (s for s in JOBS[job]["steps"] if s.get("uses", "").startswith("actions/ch"))
        assert checkout["with"]["fetch-depth"] == 0, job
    assert "OLD_RELEASE_NEEDED=1" in recipe("test-upgrade")


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
    assert "< apt-packages" in INSTALL_TOOLS.read_text()
    assert ".ci/install-tools" in RUN


@pytest.mark.parametrize("script", ["install-tools", "run"])
def test_the_scripts_parse_and_can_be_run(script: str) -> None:
    path = ROOT / ".ci" / script
    assert os.access(path, os.X_OK)
    subprocess.run(["bash", "-n", str(path)], check=True)


def test_what_a_skipped_test_asks_to_install_is_installed_in_ci() -> None:
    asked = {
        package
        for path in (ROOT / "tests").rglob("*.py")
        for line in re.findall(
            r"is not installed: apt-get install ([a-z0-9. +-]+)\"", path.read_text()
        )
        for package in line.split()
    }

    # what every machine of CI brings by itself
    asked -= {"npm", "systemd"}
    assert {"prometheus", "postgresql", "mosquitto"} <= asked
    assert asked <= set(PACKAGES.read_text().splitlines())
