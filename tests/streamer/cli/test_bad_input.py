"""Each mistake a user can make, against a running installation: one sentence, exit code 1.

Most run in this process, which saves starting the program a hundred times; those that concern
starting run the program.
"""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import nvila_core.demo
from streamer.cli.app import app
from streamer.settings import Settings
from tests.support.cameras import GstCamera, SilentServer, write_units
from tests.support.installation import Up, run_cli
from tests.support.videos import write_audio, write_video

PASSWORD = "hunter2secret"

Done = subprocess.CompletedProcess[str]
Command = Callable[..., Done]


def check(done: Done, *said: str) -> None:
    """One sentence on stderr that says `said`, nothing else, nothing secret."""
    assert done.returncode in (1, 2), (done.stdout, done.stderr)
    for words in said:
        assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stderr


@pytest.fixture
def cli(installation: Up, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run a command in this process, against the installation."""
    monkeypatch.setenv("STREAMER_DATA_DIR", str(installation.data_dir))

    def run(*arguments: str) -> Done:
        done = CliRunner().invoke(app, arguments)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return Done(arguments, done.exit_code, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(path, seconds=2.0)
    return path


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory, video: Path) -> Iterator[GstCamera]:
    units = write_units([video], tmp_path_factory.mktemp("camera") / "units")
    with GstCamera(units, user="admin", password=PASSWORD) as served:
        yield served


def names(installation: Up) -> set[str]:
    return {stream["name"] for stream in installation.records("streams")}


def test_nobody_listens(installation: Up, cli: Command) -> None:
    before = names(installation)
    check(
        cli("attach", f"rtsp://u:{PASSWORD}@127.0.0.1:1/live"),
        "Nothing listens",
        "rtsp://u:***@127.0.0.1:1/live",
    )
    assert names(installation) == before


def test_nobody_answers(cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMER_OPEN_TIMEOUT", "1")
    with SilentServer() as server:
        check(cli("attach", f"rtsp://u:{PASSWORD}@127.0.0.1:{server.port}/live"), "***")


def test_wrong_password_and_wrong_path(installation: Up, cli: Command, camera: GstCamera) -> None:
    wrong = PASSWORD + "x"
    check(cli("attach", f"rtsp://admin:{wrong}@{camera.address}"), "password")
    check(cli("attach", f"rtsp://admin:{PASSWORD}@{camera.address}-not"), "***")
    right = f"rtsp://admin:{PASSWORD}@{camera.address}"
    (stream,) = installation.records("attach", right, "--no-watch", "--name", "locked")
    assert PASSWORD not in str(stream)
    assert PASSWORD not in cli("streams").stdout
    assert PASSWORD not in cli("detach", "locked").stdout
    assert PASSWORD not in installation.output


def test_files_that_are_no_videos(cli: Command, tmp_path: Path) -> None:
    audio, text, empty = tmp_path / "a.m4a", tmp_path / "t.mp4", tmp_path / "e.mp4"
    write_audio(audio)
    text.write_text("no video")
    empty.touch()
    for path, said in [
        (tmp_path / "absent.mp4", "absent.mp4"),
        (audio, "video"),
        (text, "not a video"),
        (empty, "not a video"),
        (tmp_path, str(tmp_path)),
    ]:
        for command in ("attach", "analyze"):
            check(cli(command, str(path)), said)


def test_names_and_streams(installation: Up, cli: Command, video: Path) -> None:
    (stream,) = installation.records("attach", str(video), "--name", "taken", "--no-watch")
    check(cli("attach", str(video), "--name", "taken"), "taken", "another name")
    check(cli("attach", str(video), "--name", "a b"), "is not a valid name")
    check(cli("attach", str(video), "--prompt", " "), "prompt is empty")
    check(cli("ask", "nobody", "?"), "no stream 'nobody'")
    check(cli("ask", "taken", "?", "--since", "soon"), "is not a time")
    check(cli("ask", "taken", "?", "--until", "-1m"), "--since")
    assert cli("detach", stream["id"]).returncode == 0
    check(cli("detach", "taken"), "no stream 'taken'")
    check(cli("analyze", "rtsp://127.0.0.1/x"), "live")


def test_without_workers(redis_client: object, settings: Settings, video: Path) -> None:
    url = settings.redis_url or ""
    check(run_cli("analyze", str(video), STREAMER_REDIS_URL=url), "streamer worker")
    check(run_cli("ask", "?", STREAMER_REDIS_URL=url), "streamer worker")
    check(run_cli("ask", "?", "--no-wait", STREAMER_REDIS_URL=url), "No stream is attached")
    attached = run_cli("attach", str(video), "--json", STREAMER_REDIS_URL=url)
    assert attached.returncode == 0
    assert len(attached.stdout.splitlines()) == 1
    assert "streamer ingest" in attached.stderr


@pytest.mark.parametrize(
    "command",
    [
        "record",
        "serve --port 0",
        # they begin as `record` does
        pytest.param("ingest", marks=pytest.mark.slow),
        pytest.param("worker", marks=pytest.mark.slow),
    ],
)
def test_redis_that_is_not_there(command: str) -> None:
    url = f"redis://:{PASSWORD}@127.0.0.1:1/0"
    check(run_cli(*command.split(), STREAMER_REDIS_URL=url), "does not answer")


def test_a_checkpoint_that_lacks_a_file(
    settings: Settings, model_path: str, tmp_path: Path
) -> None:
    whole = nvila_core.demo.CHECKPOINT if model_path == "demo" else Path(model_path)
    broken = tmp_path / "broken"
    shutil.copytree(whole, broken)
    shutil.rmtree(broken / "mm_projector")
    url = settings.redis_url or ""
    check(run_cli("worker", "--model", str(broken), STREAMER_REDIS_URL=url), "mm_projector")
