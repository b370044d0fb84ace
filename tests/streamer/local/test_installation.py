"""`streamer up` as a real program: restarts, and what it leaves behind."""

import contextlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from nvila_core.resolution.policy import Measures
from streamer.cli.app import app
from streamer.errors import StreamerError
from streamer.local.installation import Installation, child_environment
from streamer.service import Service
from streamer.settings import Settings
from tests.support.installation import Up, run_cli, shared_bytes, wait_gone
from tests.support.videos import write_video

PROGRAMS = ("workers.gpu", "workers.ingest", "workers.recorder", "streamer.cli serve")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Up]]:
    """Start `streamer up` in one and the same data directory. Its model is elsewhere: a worker that
    loads one takes five seconds of processor time at each start. With `demo` it loads that one."""
    started: list[Up] = []
    model = ("--model", "elsewhere", "--backend", "openai", "--base-url", "http://127.0.0.1:1/v1")

    def make(*, demo: bool = False, **variables: str) -> Up:
        arguments = () if demo else model
        started.append(Up(tmp_path / "data", *arguments, fresh=True, **variables))
        return started[-1]

    yield make
    for up in started:
        up.stop()


def test_a_second_up_says_that_it_runs_although_its_port_is_taken_too(tmp_path: Path) -> None:
    # given an installation that has claimed its folder and listens on its port
    first = Installation(Settings(data_dir=tmp_path))
    first.claim()
    with socket.create_server(("127.0.0.1", 0)) as api:
        # when somebody forgets that, and starts another with the same command
        port = str(api.getsockname()[1])
        said = CliRunner().invoke(app, ["up", "--data-dir", str(tmp_path), "--port", port])
        # then it says that it runs, and where, and does nothing
        assert said.exit_code == 1
        words = " ".join(f"{said.exception} {said.output}".split())
        assert f"already runs in {tmp_path} (process {os.getpid()})" in words
        assert "use it, stop it" in words
        assert {path.name for path in tmp_path.iterdir()} == {"up.lock"}
    # and once the first has stopped, the port alone is the reason
    first.stop()
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        said = CliRunner().invoke(app, ["up", "--data-dir", str(tmp_path), "--port", port])
        assert f"cannot listen on 127.0.0.1:{port}" in f"{said.exception} {said.output}"


@pytest.mark.slow
def test_what_dies_is_started_again_and_nothing_is_forgotten(
    start: Callable[..., Up],
    tmp_path: Path,
    eventually: Callable[..., None],
    request: pytest.FixtureRequest,
) -> None:
    up = start()
    first = up.wait_ready()
    assert up.run_file.stat().st_mode & 0o777 == 0o600
    assert up.data_dir.stat().st_mode & 0o777 == 0o700
    video = tmp_path / "clip.mp4"
    write_video(video, seconds=1.0)
    up.cli("attach", str(video), "--name", "clip", "--no-watch")

    # a second installation is refused, and the first one is not affected
    second = run_cli("up", "--data-dir", str(up.data_dir), "--port", "0")
    assert second.returncode == 1
    assert f"already runs in {up.data_dir} (process {up.process.pid})" in second.stderr
    assert up.run_file.is_file()

    # a worker that is killed
    (recorder,) = up.find("workers.recorder")
    recorder.kill()
    eventually(lambda: up.find("workers.recorder") not in ([], [recorder]))
    assert "The recorder ended unexpectedly (exit code -9" in up.output

    # all programs are forked from one process, and share memory
    for word in PROGRAMS:
        (program,) = up.find(word)
        assert program.ppid() == up.process.pid
        assert shared_bytes(program.pid) > 4 << 20

    # when that one is killed, they run on, and can still be started again
    (server,) = up.find("streamer fork server")
    server.kill()
    for word in ("workers.recorder", "workers.ingest"):
        (worker,) = up.find(word)
        worker.kill()
        eventually(lambda: up.find(word) not in ([], [worker]))  # noqa: B023
    assert up.output.count("Programs need more memory, because the fork server") == 1

    # the server that holds all data
    port = first["redis_url"].rpartition(":")[2].partition("/")[0]
    (server,) = up.find(f":{port}")
    server.kill()
    eventually(lambda: first["redis_url"] not in up.run_file.read_text())
    with Service(up.settings) as client:
        assert [stream.name for stream in client.streams()] == ["clip"]
        eventually(lambda: client.jobs.workers() == {"ingest": 1, "clips": 1}, timeout=200)

    # the installation itself
    children = up.descendants()
    assert len(children) == 6
    os.kill(up.process.pid, signal.SIGKILL)
    wait_gone(children)
    assert "Traceback" not in up.output

    # the next in the same directory: the stream is still attached
    request.getfixturevalue("forked_programs")
    settings = Settings(data_dir=up.data_dir, api_port=0)
    with Installation(settings, model_workers=0, ingest_workers=0) as again:
        again.start()
        eventually(again.reachable)
        with Service(up.settings) as client:
            assert [stream.name for stream in client.streams()] == ["clip"]
    assert not up.run_file.exists()
    with pytest.raises(StreamerError, match="Nothing is running here"):
        Service(up.settings)


@pytest.mark.slow
def test_an_idle_installation_gives_back_the_pages_of_libraries(
    start: Callable[..., Up], tmp_path: Path, eventually: Callable[..., None]
) -> None:
    # given one that has nothing to do
    up = start(demo=True)
    up.wait_ready()
    programs = {word: up.find(word)[0] for word in (*PROGRAMS, "streamer fork server")}
    programs["streamer up"] = psutil.Process(up.process.pid)
    for word, program in programs.items():
        # then each has little more of them than what it uses now; PyTorch's are 140 MB
        most = (40 if word == "workers.gpu" else 9) << 20
        eventually(lambda: program.memory_info().shared < most, message=f"{word} keeps them")  # noqa: B023
    # and it answers
    video = tmp_path / "clip.mp4"
    write_video(video, seconds=2.0)
    answered = up.cli("analyze", str(video), "--prompt", "What is there?")
    assert answered.returncode == 0, answered.stderr


@pytest.mark.slow
def test_programs_are_fresh_interpreters_with_a_setting(start: Callable[..., Up]) -> None:
    up = start(STREAMER_FORK_PROGRAMS="false")
    up.wait_ready()
    assert up.find("fork server") == []
    (recorder,) = up.find("workers.recorder")
    assert recorder.cmdline() == [sys.executable, "-m", "workers.recorder"]
    assert shared_bytes(recorder.pid) == 0
    assert "need more memory" not in up.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--host", "0.0.0.0"), "set STREAMER_API_KEYS"),
        (("--port", "TAKEN"), "choose another --port"),
        (("--data-dir", "/proc/nowhere"), "choose another --data-dir"),
    ],
)
def test_what_cannot_start_says_why(
    tmp_path: Path, model_path: str, arguments: tuple[str, str], said: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        given = [port if a == "TAKEN" else a for a in arguments]
        done = run_cli(
            *("up", "--data-dir", str(tmp_path / "data"), "--port", "0", "--model", model_path),
            *given,
        )
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert not (tmp_path / "data" / "run.json").exists()
    assert not _users_of(tmp_path)


@pytest.mark.usefixtures("forked_programs")
def test_cameras_can_be_attached_while_the_model_loads(
    tmp_path: Path, eventually: Callable[..., None]
) -> None:
    # given a model whose configuration does not arrive, as from a slow disk
    model = tmp_path / "model"
    model.mkdir()
    os.mkfifo(model / "config.json")
    settings = Settings(data_dir=tmp_path / "data", api_port=0, model=str(model))
    with Installation(settings, ingest_workers=0) as installation:
        # when the installation starts
        installation.start()
        eventually(installation.reachable)
        # then users can attach and ask, and see that the model loads
        assert not installation.ready()
        with Service(installation.settings) as client:
            client.attach("rtsp://192.0.2.1/door", "door", watches=[], probe=False)
            eventually(client.jobs.model_loading)
            client.require_worker()
            (lack,) = (p for p in client.health.missing() if p.name == "model worker")
            assert "loading its model" in str(lack.message)
            # and when the model proves to be none, the installation says why, and restarts nothing
            (model / "config.json").rename(tmp_path / "pipe")
            (model / "config.json").write_text("{")
            (tmp_path / "pipe").write_text("{")
            with pytest.raises(StreamerError, match=r"config\.json"):
                eventually(installation.ready)
            installation.poll()
            assert not client.jobs.model_loading()
            with pytest.raises(StreamerError, match="No model worker is running"):
                client.require_worker()


@pytest.mark.parametrize("delay", [0.4, pytest.param(1.5, marks=pytest.mark.slow)])
def test_ctrl_c_while_starting(tmp_path: Path, model_path: str, delay: float) -> None:
    up = Up(tmp_path / "data", "--model", model_path, fresh=True)
    try:
        time.sleep(delay)
        code = up.interrupt(signal.SIGTERM)
        assert code in (0, -signal.SIGTERM)  # before its handlers stood, the signal ended it
        assert not re.search("Traceback", up.output)
        assert not up.run_file.exists()
    finally:
        up.stop()
    assert not _users_of(tmp_path)


def _users_of(directory: Path) -> list[list[str]]:
    """Return the command lines of processes whose arguments name `directory`."""
    found = []
    for process in psutil.process_iter():
        try:
            reported = " ".join([*process.cmdline(), *process.environ().values()])
        except psutil.Error:
            continue
        with contextlib.suppress(OSError):  # a forked program shows the environment of `up`
            reported += os.readlink(f"/proc/{process.pid}/fd/1")
        if process.pid != os.getpid() and str(directory) in reported:
            found.append(process.cmdline())
    return found


def test_children_see_exactly_our_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(
        redis_url="redis://h/1", data_dir=tmp_path, api_keys=["a", "b"], fps=2.5, device="cpu"
    )
    for name, value in child_environment(settings).items():
        if name.startswith("STREAMER_"):
            monkeypatch.setenv(name, value)
    assert Settings() == settings


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of_stream", "of_all", "survive"),
    [(604800.0, 0.0, True), (None, 3600.0, True), (None, 0.0, False)],
    ids=["a stream's history", "the setting", "none"],
)
@pytest.mark.usefixtures("forked_programs")
def test_frames_survive_a_restart_if_a_history_is_kept(
    tmp_path: Path, of_stream: float | None, of_all: float, survive: bool
) -> None:
    settings = Settings(data_dir=tmp_path / "data", api_port=0, history=of_all)

    def run(use: Callable[[Service], None]) -> None:
        with Installation(settings, model_workers=0, ingest_workers=0) as installation:
            installation.start()
            while not installation.ready():
                time.sleep(0.05)
            with Service(installation.settings) as client:
                use(client)

    found: list[int] = []

    def store(client: Service) -> None:
        stream = client.attach(
            "rtsp://192.0.2.1/door", "door", watches=[], history=of_stream, probe=False
        )
        for age in range(20):
            measures = Measures(8, 8, change=0.0)
            client.frames.put(stream.id, b"jpeg", measures, time=time.time() - 20 + age, pts=age)

    def look(client: Service) -> None:
        refs = client.frames.newest(client.stream("door").id, 100)
        found.append(len(client.frames.load(refs)))

    run(store)
    run(look)

    assert found == [20 if survive else 0]
    snapshots = list((tmp_path / "data" / "frames").glob("*.rdb"))
    assert bool(snapshots) == survive
