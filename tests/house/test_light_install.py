"""The wheel without the extra `model`: installed in a virtual environment of its own, and used."""

import os
import subprocess
import sys
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.test_packaging import declared, wheel
from tests.support.api_server import ApiServer

__all__ = ["wheel"]

pytestmark = pytest.mark.slow

MODEL = {"torch", "transformers", "tokenizers", "jinja2", "safetensors", "huggingface-hub"}


def needed_without_the_model() -> dict[str, Distribution]:
    """Return what the project needs, and what that needs, by name; as pip would install it."""
    found: dict[str, Distribution] = {}
    wanted = declared()
    while wanted:
        requirement = wanted.pop()
        extras = requirement.extras or {""}
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        name = canonicalize_name(requirement.name)
        if name in found and extras == {""}:
            continue
        found[name] = distribution(name)
        for text in found[name].requires or []:
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                inner.marker = None
                wanted.append(inner)
    return found


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment that has the wheel and what it needs, without the model.

    The packages are links to those of this environment, so that the test needs no network.
    """
    folder = tmp_path_factory.mktemp("light")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True, timeout=200)
    program: Path = folder / "venv" / "bin" / "python"
    (site,) = (folder / "venv" / "lib").glob("python3*/site-packages")
    for dependency in needed_without_the_model().values():
        tops = {file.parts[0] for file in dependency.files or [] if file.parts[0] != ".."}
        for top in tops - {"__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(str(dependency.locate_file(top)))
    install = [str(program), "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, wheel], check=True, timeout=200)
    return program


def run(python: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python in the environment, with nothing of this one in its environment variables."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    return subprocess.run(
        [python, *arguments],
        cwd=python.parent,
        env=kept | variables,
        capture_output=True,
        text=True,
        timeout=200,
        stdin=subprocess.DEVNULL,
    )


def test_the_model_is_not_among_what_is_needed() -> None:
    needed = needed_without_the_model()

    assert not MODEL & set(needed)
    assert {"httpx", "pydantic", "redis", "typing-extensions"} <= set(needed)


def test_the_service_is_imported_and_shows_its_help(python: Path) -> None:
    modules = "streamer, streamer.service, streamer.api.app, workers.ingest"
    modules += ", workers.recorder.worker"
    imported = run(python, "-c", f"import sys, {modules}; print(streamer.__file__)")
    helped = run(python, str(python.with_name("streamer")), "--help")
    without = run(python, "-c", "import torch")

    assert imported.returncode == 0, imported.stderr
    assert str(python.parent.parent) in imported.stdout
    assert helped.returncode == 0, helped.stderr
    assert "attach" in helped.stdout
    assert "ModuleNotFoundError" in without.stderr


def test_the_http_client_works(python: Path, api_server: ApiServer) -> None:
    api_server.client.attach("rtsp://192.0.2.1/door", "door", probe=False)
    code = """
from streamer import Client
with Client() as client:
    print([stream.name for stream in client.streams()])
"""
    done = run(python, "-c", code, STREAMER_API_URL=api_server.url)

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["['door']"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "streamer.cli", "worker"],
        ["-m", "streamer.cli", "up"],
        ["-m", "streamer.cli", "demo"],
        ["-m", "streamer.cli", "tune"],
        ["-m", "workers.gpu"],
        ["-m", "nvila_core", "ask", "--model", "x", "photo.jpg", "What?"],
        ["-c", "from nvila_core import NVILA"],
    ],
    ids=" ".join,
)
def test_what_needs_the_model_says_what_to_install(
    python: Path, api_server: ApiServer, arguments: list[str]
) -> None:
    url = api_server.client.settings.redis_url or ""

    done = run(python, *arguments, STREAMER_REDIS_URL=url)

    said = done.stderr.strip().splitlines()[-1]
    assert done.returncode != 0
    assert "nvila-streamer[model]" in said
    assert "torch" in said
    if arguments[0] == "-m":
        assert "Traceback" not in done.stderr
