"""Every program in examples/ runs, against a real service, a real camera and the demo model."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nvila_core.demo.video import StreetVideo, write_video
from streamer.demo.loopback_camera import LoopbackCamera
from tests.support.fork_server import run_python
from tests.support.installation import Up, clean_environment, has_demo_model

EXAMPLES = Path(__file__).parents[2] / "examples"
SEED, SECONDS = 3_000_000_017, 8.0

pytestmark = pytest.mark.skipif(
    not has_demo_model(), reason="the demo checkpoint has not been trained yet"
)


def run(name: str, *arguments: str, **variables: str) -> list[str]:
    """Run an example to its successful end; return the lines that it printed."""
    command, environment = [str(EXAMPLES / name), *arguments], clean_environment(**variables)
    if name.endswith(".sh"):
        done = subprocess.run(
            ["sh", *command], env=environment, capture_output=True, text=True, timeout=280
        )
    else:
        done = run_python(command, env=environment, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("street") / "street.mp4"
    write_video(path, StreetVideo(SEED, SECONDS))
    return path


@pytest.fixture(scope="module")
def camera(street: Path) -> Iterator[LoopbackCamera]:
    with LoopbackCamera(street) as served:
        yield served


@pytest.fixture(scope="module")
def gate(installation: Up, camera: LoopbackCamera) -> Iterator[str]:
    """The name of a stream that is attached and captioned every two seconds."""
    installation.records("attach", camera.url, "--name", "gate", "--window", "2")
    yield "gate"
    assert installation.cli("detach", "gate").returncode == 0


def names(installation: Up) -> list[str]:
    return [stream["name"] for stream in installation.records("streams")]


def test_caption_video(street: Path) -> None:
    caption, cost = run("caption_video.py", str(street))

    assert caption.endswith(".")
    assert "vision tokens" in cost


def test_many_questions(street: Path) -> None:
    questions = ["Is there a car?", "How many people are there?", "Describe the scene."]

    lines = run("many_questions.py", str(street), *questions)

    assert [line[: len(question)] for line, question in zip(lines, questions, strict=True)] == (
        questions
    )
    assert sum("(0 positions reused)" in line for line in lines) < len(questions)


def test_watch_camera(installation: Up, camera: LoopbackCamera) -> None:
    attached = names(installation)

    lines = run(
        "watch_camera.py",
        *(camera.url, "--captions", "2", "--window", "1"),
        STREAMER_DATA_DIR=str(installation.data_dir),
    )

    assert len([line for line in lines if line.endswith("ms)")]) == 2
    assert names(installation) == attached, "the example detaches what it attached"


def test_consume_results(installation: Up, gate: str) -> None:
    url = json.loads(installation.run_file.read_text())["redis_url"]

    first = run("consume_results.py", "--count", "1", STREAMER_REDIS_URL=url)
    more = run("consume_results.py", "--count", "2", STREAMER_REDIS_URL=url)

    assert all(line.split()[1] in ("caption", "answer", "error") for line in [*first, *more])


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_http_api(installation: Up, camera: LoopbackCamera) -> None:
    lines = run("http_api.sh", camera.url, STREAMER_API=installation.api_url)

    stream, query, page, _ = lines
    assert json.loads(stream)["url"] == camera.url
    assert json.loads(query)["result"]["kind"] == "answer"
    assert isinstance(json.loads(page)["results"], list)
    assert json.loads(stream)["name"] not in names(installation)


def test_ask_all(installation: Up, gate: str) -> None:
    lines = run("ask_all.py", "Is there a car?", STREAMER_API_URL=installation.api_url)

    (answer,) = [line for line in lines if line.startswith(f"{gate}: ")]
    assert answer.removeprefix(f"{gate}: ").strip()


def test_alert(installation: Up, gate: str) -> None:
    lines = run(
        "alert.py",
        *(gate, "Is there a car?", "--window", "1", "--answers", "3"),
        STREAMER_API=installation.api_url,
    )

    answers = [line.split()[-1] for line in lines if line.startswith("ok")]
    assert len(lines) >= 3
    assert set(answers) <= {"yes", "no"}
    (stream,) = [s for s in installation.records("streams") if s["name"] == gate]
    assert len(stream["watches"]) == 1, "the example removes its question"


def test_every_example_is_tested_and_listed() -> None:
    programs = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".sh")}
    tested = set(re.findall(r'run\(\s*"([\w.]+)"', Path(__file__).read_text()))
    listed = set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text()))
    assert programs == tested == listed
