"""docker/ refers to existing files and settings, runs without privileges, and checks health."""

import fnmatch
import os
import re
import runpy
import socket
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from streamer.settings import ENV_PREFIX, Settings
from tests.support.fork_server import run_python

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
HEALTHCHECK = DOCKER / "healthcheck.py"
VARIABLES = {ENV_PREFIX + name.upper() for name in Settings.model_fields}


@cache
def compose(name: str = "compose.yaml") -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / name).read_text())
    return loaded


def own_services() -> dict[str, dict[str, Any]]:
    return {n: s for n, s in compose()["services"].items() if "nvila" in s["image"]}


@cache
def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile as (instruction, arguments), without comments, lines joined."""
    lines = [x for x in (DOCKER / "Dockerfile").read_text().splitlines() if not x.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [(p[0], p[2]) for line in joined.splitlines() if (p := line.partition(" "))[0]]


def stages() -> dict[str, str]:
    """Return the base of each stage."""
    found = (
        re.fullmatch(r"(\S+) AS (\S+)", rest) for name, rest in instructions() if name == "FROM"
    )
    return {match[2]: match[1] for match in found if match}


def test_compose_has_the_whole_service() -> None:
    assert {"redis", "api", "ingest", "worker", "recorder"} <= set(compose()["services"])


def test_every_command_is_one_of_the_command_line() -> None:
    from streamer.cli.app import app

    known = {command.name for command in app.registered_commands}
    for name, service in own_services().items():
        assert service["command"][0] in known, name
    default = dict(instructions())["CMD"]
    assert re.findall(r'"(\w+)"', default)[0] in known


def test_every_variable_is_a_setting() -> None:
    for name, service in own_services().items():
        given = {variable for variable in service["environment"] if variable.startswith(ENV_PREFIX)}
        assert given <= VARIABLES, name
    text = "".join(f"{rest}\n" for instruction, rest in instructions() if instruction == "ENV")
    assert set(re.findall(rf"\b({ENV_PREFIX}\w+)=", text)) <= VARIABLES
    # A variable for compose alone must not look like a setting: `streamer` would refuse it.
    asked = set(re.findall(rf"\$\{{({ENV_PREFIX}\w+)", (DOCKER / "compose.yaml").read_text()))
    assert asked <= VARIABLES


def test_scaled_services_can_be_scaled() -> None:
    for name in ("worker", "ingest", "recorder"):
        assert "container_name" not in compose()["services"][name]
        assert "ports" not in compose()["services"][name]


def test_nothing_but_the_api_is_published_and_that_on_loopback() -> None:
    published = {n: s["ports"] for n, s in compose()["services"].items() if "ports" in s}

    assert list(published) == ["api"]
    assert all(port.startswith("127.0.0.1:") for port in published["api"])


def test_services_have_health_checks_and_no_privileges() -> None:
    for name, service in compose()["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert ":" in service["image"], f"{name} has no tag"
        assert "privileged" not in service, name
        for dependency in service.get("depends_on", {}):
            assert dependency in compose()["services"], name


def test_redis_keeps_jobs_and_not_frames() -> None:
    services = compose()["services"]
    jobs, frames = (" ".join(services[name]["command"]) for name in ("redis", "frames"))

    assert "--appendonly yes" in jobs
    assert "noeviction" in jobs
    assert "--appendonly no" in frames
    assert all("--maxmemory " in command for command in (jobs, frames))
    assert "noeviction" in frames  # the service deletes the oldest frames itself


def test_named_volumes_are_declared() -> None:
    for name, service in compose()["services"].items():
        for volume in service.get("volumes", []):
            source = volume.rsplit(":/", 1)[0]
            assert source.startswith("${") or source in compose()["volumes"], f"{name}: {volume}"


def test_targets_exist_and_build_on_the_unprivileged_stage() -> None:
    assert {"cpu", "cuda"} <= set(stages())
    assert stages()["cpu"] == stages()["cuda"] == "runtime"
    for service in own_services().values():
        assert service["build"]["target"] in stages()
        assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    cuda = compose("compose.cuda.yaml")["services"]
    assert set(compose()["services"]) & set(cuda) == {"worker"}
    for service in cuda.values():
        assert service["build"]["target"] == "cuda"


def test_each_cuda_worker_has_a_gpu_of_its_own() -> None:
    cuda = compose("compose.cuda.yaml")["services"]
    given = {}
    for name, service in cuda.items():
        (device,) = service["deploy"]["resources"]["reservations"]["devices"]
        (given[name],) = device["device_ids"]
        if name != "worker":
            assert service["extends"] == {"file": "compose.yaml", "service": "worker"}
            assert service["profiles"] == [f"gpu{given[name]}"]
    assert len(set(given.values())) == len(given) > 1
    assert given["worker"] == "0"


def test_the_wheels_of_the_cpu_image_do_not_get_into_the_other() -> None:
    cpu = compose()["services"]["worker"]["build"]["args"]["TORCH_INDEX_URL"]
    cuda = compose("compose.cuda.yaml")["services"]["worker"]["build"]["args"]["TORCH_INDEX_URL"]
    assert re.findall(r"\w+_URL", cpu) == ["TORCH_INDEX_URL"]
    assert re.findall(r"\w+_URL", cuda) == ["CUDA_TORCH_INDEX_URL"]
    assert ("ARG", "TORCH_INDEX_URL=") in instructions()


def test_the_image_runs_without_privileges() -> None:
    users = [rest for instruction, rest in instructions() if instruction == "USER"]
    assert users == ["streamer"]
    runtime = next(i for i, (_, rest) in enumerate(instructions()) if rest.endswith(" AS runtime"))
    user = instructions().index(("USER", "streamer"))
    entry = next(i for i, (name, _) in enumerate(instructions()) if name == "ENTRYPOINT")
    assert runtime < user < entry


def test_every_copied_path_exists_and_reaches_the_build() -> None:
    rules = (ROOT / ".dockerignore").read_text().split()
    kept = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    for instruction, rest in instructions():
        if instruction != "COPY" or "--from=" in rest:
            continue
        for source in rest.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, rule) for rule in kept), f"{source} is ignored"


def test_copied_stages_exist() -> None:
    for instruction, rest in instructions():
        if instruction == "COPY" and (match := re.search(r"--from=(\S+)", rest)):
            assert match[1] in stages()


def check(what: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return run_python([str(HEALTHCHECK), what], env={**os.environ, **environment})


def test_compose_uses_only_checks_that_exist() -> None:
    program = runpy.run_path(str(HEALTHCHECK))
    known = {"api", "recorder", *program["QUEUES"]}
    for service in own_services().values():
        *_, script, what = service["healthcheck"]["test"]
        assert Path(script).name == HEALTHCHECK.name
        assert what in known
    assert check("nonsense").returncode == 2


def test_a_dead_api_is_not_healthy() -> None:
    with socket.socket() as probe:  # reserves the port without listening
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

        assert check("api", STREAMER_API_PORT=str(port)).returncode == 1


@pytest.mark.parametrize(("what", "program"), [("ingest", "ingest"), ("recorder", "recorder")])
def test_the_health_check_sees_a_worker_and_its_absence(
    what: str,
    program: str,
    settings: Settings,
    worker_process: Callable[..., Any],
    eventually: Callable[..., None],
) -> None:
    assert settings.redis_url is not None
    url = settings.redis_url
    assert check(what, STREAMER_REDIS_URL=url).returncode == 1  # nothing runs yet

    worker_process(program)

    eventually(lambda: check(what, STREAMER_REDIS_URL=url).returncode == 0)
    assert check("worker", STREAMER_REDIS_URL=url).returncode == 1  # still no model worker
