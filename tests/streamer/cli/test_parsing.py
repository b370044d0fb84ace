"""Arguments, help and the shape of errors, in this process."""

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamer import __version__
from streamer.cli.app import app
from streamer.settings import Settings

PASSWORD = "hunter2secret"
COMMANDS = [
    "up",
    "demo",
    "attach",
    "detach",
    "streams",
    "ask",
    "query",
    "watch",
    "analyze",
    "results",
    "probe",
    "doctor",
    "tune",
    "serve",
    "ingest",
    "worker",
    "record",
    "version",
]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> CliRunner:
    monkeypatch.setenv("STREAMER_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner()


def test_every_command_is_there_and_has_help(runner: CliRunner) -> None:
    top = runner.invoke(app, ["--help"])
    assert top.exit_code == 0
    for command in COMMANDS:
        assert f" {command} " in top.output
        helped = runner.invoke(app, [command, "--help"])
        assert helped.exit_code == 0
        assert len(helped.output.splitlines()) > 3


def test_version(runner: CliRunner) -> None:
    for arguments in (["version"], ["--version"]):
        said = runner.invoke(app, arguments)
        assert (said.exit_code, said.output.strip()) == (0, f"streamer {__version__}")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["attach"],
        ["ask", "a", "b", "c"],
        ["attach", "x", "--fps", "0"],
        ["attach", "x", "--no-watch", "--prompt", "?"],
        ["ask", "?", "--max-frames", "0"],
        ["results", "--kind", "bogus"],
        ["demo", "--seconds", "soon"],
        ["up", "--workers", "0"],
        ["attach", "door", f"rtsp://u:{PASSWORD}@cam/x"],
        [f"rtsp://u:{PASSWORD}@cam/x"],
        ["attach", "x", "--window", f"rtsp://u:{PASSWORD}@cam/x"],
    ],
)
def test_usage_errors(runner: CliRunner, arguments: list[str]) -> None:
    done = runner.invoke(app, arguments)
    assert done.exit_code == 2
    assert done.stderr or not arguments
    assert "Traceback" not in done.output
    assert PASSWORD not in done.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["streams"], "start `streamer up`"),
        (["attach", "x.mp4"], "start `streamer up`"),
        (["ask", ""], "The prompt is empty"),
        (["ask", "door", "  "], "The prompt is empty"),
        (["ask"], "The prompt is empty"),
        (["analyze", "x.mp4", "--prompt", " "], "The prompt is empty"),
        (["--redis-url", f"redis://:{PASSWORD}@127.0.0.1:1/0", "streams"], "does not answer"),
        (["--redis-url", f"http://u:{PASSWORD}@h", "streams"], "not a Redis address"),
        (["--config", "no/such.yaml", "streams"], "no/such.yaml"),
        (["serve", "--host", "0.0.0.0"], "set STREAMER_API_KEYS"),
    ],
)
def test_one_sentence_on_stderr(runner: CliRunner, arguments: list[str], said: str) -> None:
    done = runner.invoke(app, arguments)
    assert done.exit_code == (2 if "prompt" in said else 1)
    assert said in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""
    assert PASSWORD not in done.output


def test_debug_shows_the_traceback_without_the_password(runner: CliRunner) -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:1/0"
    done = runner.invoke(app, ["--debug", "--redis-url", url, "streams"])
    assert done.exit_code == 1
    assert "Traceback" in done.stderr
    assert PASSWORD not in done.output


@pytest.mark.parametrize("command", ["streams", "ask", "results", "doctor", "tune"])
def test_options_of_every_command_may_follow_its_name(runner: CliRunner, command: str) -> None:
    words = ["?"] if command == "ask" else []
    before = runner.invoke(app, ["--config", "no/such.yaml", command, *words])
    after = runner.invoke(app, [command, *words, "--config", "no/such.yaml"])
    assert before.exit_code == after.exit_code == 1
    assert before.stderr == after.stderr
    assert "no/such.yaml" in after.stderr
    assert "Traceback" in runner.invoke(app, [command, *words, "--config", "no", "--debug"]).stderr


def test_a_bad_setting_is_named(runner: CliRunner, tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("fsp: 3\n")
    done = runner.invoke(app, ["--config", str(config), "streams"])
    assert done.exit_code == 1
    assert "fsp" in done.stderr
    config.write_text("fps: -1\n")
    assert "fps" in runner.invoke(app, ["--config", str(config), "streams"]).stderr


def test_relative_times_are_values_and_not_options(
    runner: CliRunner, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMER_REDIS_URL", settings.redis_url or "")
    done = runner.invoke(app, ["results", "--since", "-10m", "--until", "-5m", "--json"])
    assert (done.exit_code, done.stdout) == (0, "")
    wrong = runner.invoke(app, ["results", "--since", "10m"])
    assert wrong.exit_code == 2
    assert "is not a time" in wrong.stderr


def test_the_program_starts_without_heavy_imports() -> None:
    heavy = [
        "torch",
        "transformers",
        "av",
        "cv2",
        "redis",
        "rq",
        "pydantic",
        "sqlalchemy",
        "fastapi",
        "uvicorn",
        "numpy",
    ]
    code = (
        "import sys, streamer.cli.app, streamer.demo, streamer.api;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_neither_the_service_nor_a_worker_that_asks_a_server_imports_torch() -> None:
    code = (
        "import sys, streamer.service, streamer.local.installation, streamer.api.app,"
        "streamer.demo.show, streamer.media.source, streamer.timeline.results,"
        "streamer.frames.jpeg, workers.gpu.worker, workers.remote.backend;"
        "from nvila_core import Completion;"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"
