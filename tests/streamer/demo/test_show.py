"""`streamer demo` as a real program: what it shows, and that it leaves nothing behind."""

import os
import re
import signal
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from streamer.local.process import spawn, stop
from tests.support.installation import PROGRAM, clean_environment, run_cli
from tests.support.videos import write_video

MARKER = "NVILA_TEST_MARKER"


class Demo:
    """A demo in a child process; all that it starts inherits a marker in its environment."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.marker = uuid.uuid4().hex
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.log = folder / "demo.log"
        self.process = spawn(
            [*PROGRAM, "demo", *arguments],
            env=clean_environment(**{MARKER: self.marker, "TMPDIR": str(self.temporary)}),
            log=self.log,
        )

    @property
    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    def family(self) -> list[psutil.Process]:
        """Every process on the machine that carries the marker."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARKER) == self.marker:
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def assert_gone(self) -> None:
        left = self.family()
        assert not left, [process.cmdline() for process in left]
        assert list(self.temporary.iterdir()) == []


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    started: list[Demo] = []

    def start(*arguments: str) -> Demo:
        started.append(Demo(tmp_path, *arguments))
        return started[-1]

    yield start
    for each in started:
        stop(each.process)
        for process in each.family():
            process.kill()


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        (0.3, signal.SIGTERM),  # while it imports
        # about when it starts its servers
        pytest.param(1.5, signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(4.0, signal.SIGINT, marks=pytest.mark.slow),  # while it draws and loads
        # while it attaches
        pytest.param("Attached own", signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_ctrl_c_leaves_nothing_behind(
    demo: Callable[..., Demo],
    tmp_path: Path,
    model_path: str,
    eventually: Callable[..., None],
    moment: float | str,
    number: signal.Signals,
) -> None:
    arguments = ["--model", model_path]
    if isinstance(moment, str):  # drawing the street takes long, and nothing of it is tested here
        own = tmp_path / "own.mp4"
        write_video(own, seconds=4.0)
        arguments += ["--source", str(own)]
    shown = demo(*arguments)
    if isinstance(moment, str):
        eventually(lambda: moment in shown.output or shown.process.poll() is not None, timeout=200)
    else:
        time.sleep(moment)
    assert shown.process.poll() is None, shown.output
    os.kill(shown.process.pid, number)
    os.kill(shown.process.pid, number)  # an impatient user
    # before its handlers stand, nothing has been started and the signal just ends it
    assert shown.process.wait(120) in (130, -number), shown.output
    assert "Traceback" not in shown.output
    shown.assert_gone()


@pytest.mark.slow  # tests/streamer/local/test_installation.py kills `streamer up`
def test_a_killed_demo_leaves_no_process(
    demo: Callable[..., Demo], model_path: str, eventually: Callable[..., None]
) -> None:
    shown = demo("--model", model_path)
    eventually(lambda: len(shown.family()) >= 4)
    shown.process.kill()
    shown.process.wait()
    eventually(lambda: not shown.family())


@pytest.mark.slow
def test_what_cannot_be_shown(demo: Callable[..., Demo]) -> None:
    shown = demo("--model", "no/such/model")
    assert shown.process.wait(200) == 1, shown.output
    assert "no/such/model" in shown.output
    assert "Traceback" not in shown.output
    shown.assert_gone()


@pytest.mark.slow
def test_the_whole_show(demo: Callable[..., Demo], model_path: str) -> None:
    shown = demo("--seconds", "20", "--model", model_path)
    assert shown.process.wait(200) == 0, shown.output
    output = shown.output
    assert "What number is on the sign?" in output
    assert "How many cars are there?" in output
    number = r" +(\d+)(?: \(\d+ dropped\))?"
    for stream in ("camera", "recording"):
        row = re.search(rf"^ *{stream}{number * 7} *$", output, re.M)
        assert row, output
        decoded, sampled, _, clips, tokens, p50, p95 = map(int, row.groups())
        assert decoded > sampled >= clips > 0
        assert tokens > 0
        assert p95 >= p50 > 0
    assert re.search(r"\d+ tiles? · \d+ vision tokens · \d+ ms", output)
    shown.assert_gone()


@pytest.mark.slow
def test_ones_own_source_and_keep(
    demo: Callable[..., Demo], tmp_path: Path, model_path: str, eventually: Callable[..., None]
) -> None:
    own = tmp_path / "own.mp4"
    write_video(own, seconds=20.0, fps=10)
    shown = demo("--seconds", "1", "--source", str(own), "--model", model_path, "--keep")
    eventually(lambda: "Still running" in shown.output, timeout=200, message=shown.output)
    assert "Attached own:" in shown.output
    data_dir = re.search(r"export STREAMER_DATA_DIR=(\S+)", shown.output)
    assert data_dir
    assert data_dir[1].startswith(tempfile.gettempdir()) or str(tmp_path) in data_dir[1]
    listed: subprocess.CompletedProcess[str] = run_cli("streams", STREAMER_DATA_DIR=data_dir[1])
    assert "own" in listed.stdout
    shown.process.send_signal(signal.SIGINT)
    assert shown.process.wait(120) == 0, shown.output
    shown.assert_gone()
