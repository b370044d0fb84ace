"""A real `streamer up`, shared by many tests, and the real `streamer` program."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

import nvila_core.demo
from streamer.local.process import spawn, stop
from streamer.settings import ENV_PREFIX, Settings
from tests.support.fork_server import run_python, spawn_python
from tests.support.sessions import kill_session

PROGRAM = [sys.executable, "-m", "streamer.cli"]


def has_demo_model() -> bool:
    """Return whether the trained demo checkpoint exists."""
    return (nvila_core.demo.CHECKPOINT / "config.json").is_file()


def clean_environment(**variables: str) -> dict[str, str]:
    """Return the environment without the developer's STREAMER_* variables, plus `variables`."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ENV_PREFIX)}
    return {**kept, "OMP_NUM_THREADS": "1", "COLUMNS": "160", **variables}


def run_cli(
    *arguments: str, timeout: float = 200.0, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run the real program until it ends."""
    return run_python(
        ["-m", "streamer.cli", *arguments], env=clean_environment(**variables), timeout=timeout
    )


class Up:
    """A `streamer up` in a child process.

    It is forked from the fork server of the tests, so that neither it nor its programs need to
    import anything; with `fresh`, it is an interpreter of its own, as users start it.
    """

    def __init__(
        self, data_dir: Path, *arguments: str, fresh: bool = False, **variables: str
    ) -> None:
        self.data_dir = data_dir
        self.log = data_dir.parent / f"{data_dir.name}-up.log"
        self.run_file = data_dir / "run.json"
        arguments = ("up", "--data-dir", str(data_dir), "--port", "0", *arguments)
        environment = clean_environment(**variables)
        if fresh:
            self.process = spawn([*PROGRAM, *arguments], env=environment, log=self.log)
        else:
            self.process = spawn_python(
                ["-m", "streamer.cli", *arguments], env=environment, log=self.log
            )

    def wait_ready(self, timeout: float = 200.0) -> dict[str, Any]:
        """Wait until it is ready, the model too; return the content of the run file."""
        self._wait(self._is_ready, timeout)
        return self.wait_reachable(timeout)

    def wait_reachable(self, timeout: float = 200.0) -> dict[str, Any]:
        """Wait for the run file and return its content; the model may still be loading."""
        self._wait(self.run_file.is_file, timeout)
        content: dict[str, Any] = json.loads(self.run_file.read_text())
        return content

    def _is_ready(self) -> bool:
        printed = self.log.read_text(errors="replace") if self.log.is_file() else ""
        loads = "The model is loading: " in printed and "The model is ready." not in printed
        return "Press Ctrl-C to stop everything." in printed and not loads

    def _wait(self, condition: Callable[[], bool], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"`streamer up` did not get ready:\n{self.output}")
            time.sleep(0.05)

    @property
    def output(self) -> str:
        """What it printed and what its programs logged."""
        logs = [self.log, *sorted((self.data_dir / "logs").glob("*.log"))]
        return "\n".join(log.read_text(errors="replace") for log in logs if log.is_file())

    @property
    def api_url(self) -> str:
        """URL of its API."""
        return str(json.loads(self.run_file.read_text())["api_url"])

    @property
    def settings(self) -> Settings:
        """Settings of a client on the same machine."""
        return Settings(data_dir=self.data_dir)

    def descendants(self) -> list[psutil.Process]:
        """Return all that it has started: its descendants, and what writes its logs."""
        logs = str(self.data_dir / "logs")
        found = {
            process.pid: process for process in psutil.Process(self.process.pid).children(True)
        }
        for process in psutil.process_iter():
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{process.pid}/fd/1").startswith(logs):
                    found[process.pid] = process
        return list(found.values())

    def find(self, word: str) -> list[psutil.Process]:
        """Return the descendants with `word` in their command line."""
        found = []
        for process in self.descendants():
            with contextlib.suppress(psutil.Error):
                if any(word in part for part in process.cmdline()):
                    found.append(process)
        return found

    def interrupt(self, number: int = signal.SIGINT, timeout: float = 120.0) -> int:
        """Send a signal, wait for the end, and return the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def stop(self) -> None:
        """End it and all of its session."""
        started = self.descendants() if self.process.poll() is None else []
        stop(self.process, 10.0)
        kill_session(self.process)
        for process in started:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def cli(
        self, *arguments: str, timeout: float = 200.0, **variables: str
    ) -> "subprocess.CompletedProcess[str]":
        """Run the real `streamer` against this installation."""
        return run_cli(
            *arguments, timeout=timeout, STREAMER_DATA_DIR=str(self.data_dir), **variables
        )

    def records(self, *arguments: str, timeout: float = 200.0) -> list[dict[str, Any]]:
        """Return the records that a command prints with --json; fail if it prints anything else."""
        done = self.cli(*arguments, "--json", timeout=timeout)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]


def shared_bytes(pid: int) -> int:
    """Return how much memory of a process others have written and share, as after a fork."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("Shared_Dirty:"))
    return int(line.split()[1]) * 1024


def wait_gone(processes: Sequence[psutil.Process], timeout: float = 120.0) -> None:
    """Fail if one of `processes` does not end."""
    _, alive = psutil.wait_procs(processes, timeout=timeout)
    assert not alive, [p.cmdline() for p in alive if p.is_running()]


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The demo model, or a random one if the demo checkpoint is missing."""
    if has_demo_model():
        return "demo"
    path = tmp_path_factory.mktemp("model") / "tiny"
    subprocess.run(
        [sys.executable, "-m", "nvila_core.checkpoint.random_checkpoint", str(path)],
        check=True,
        capture_output=True,
        timeout=200,
    )
    return str(path)


_shared: list[Up] = []


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory, model_path: str) -> Iterator[Up]:
    """A `streamer up` that tests share: each uses its own stream names."""
    up = Up(
        tmp_path_factory.mktemp("installation") / "data",
        "--model",
        model_path,
        # on a busy machine pictures are soon old, and questions wait
        STREAMER_STALE_AFTER="600",
        STREAMER_MAX_QUERY_WAIT="3600",
    )
    _shared.append(up)
    try:
        up.wait_ready()
        yield up
    finally:
        _end_shared()


@pytest.hookimpl(trylast=True)  # after the fixtures that use it
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """End the shared installation after its last test: it costs processor time while it runs."""
    used = nextitem is not None and (
        "installation" in getattr(nextitem, "fixturenames", ()) or nextitem.path == item.path
    )
    if not used:
        _end_shared()


def _end_shared() -> None:
    while _shared:
        up = _shared.pop()
        try:
            children = up.descendants()
            assert up.interrupt() == 0, up.output
            wait_gone(children)
            assert not up.run_file.exists()
            assert "Traceback" not in up.log.read_text()
        finally:
            up.stop()
