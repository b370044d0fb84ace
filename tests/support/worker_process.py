"""Real worker processes: `python -m workers.X`, or a program of the tests."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from streamer.local.process import stop
from streamer.settings import ENV_PREFIX, Settings
from tests.support.fork_server import spawn_python
from tests.support.sessions import kill_session

ROOT = str(Path(__file__).parents[2])


class WorkerProcess:
    """A real `python -m workers.X`, with its log in a file."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def output(self) -> str:
        """Everything that the process has written so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, timeout: float = 120.0) -> None:
        """Wait until it has written `text`; fail when it ends or `timeout` passes first."""
        deadline = time.monotonic() + timeout
        while text not in self.output:
            if self.process.poll() is not None:
                pytest.fail(f"ended with {self.process.returncode} before {text!r}:\n{self.output}")
            if time.monotonic() > deadline:
                pytest.fail(f"no {text!r} within {timeout} s:\n{self.output}")
            time.sleep(0.02)

    def wait(self, timeout: float = 120.0) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout)

    def terminate(self) -> None:
        """Send SIGTERM: finish the work that has begun, then end."""
        self.process.terminate()

    def kill(self) -> None:
        """Send SIGKILL and wait for the end."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def worker_process(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., WorkerProcess]]:
    """Start `python -m workers.X` for real: `worker_process("gpu", "--burst", STREAMER_MODEL=...)`.

    Positional arguments go to the program, keywords to its environment beside those of `settings`.
    It has logged `ready` when the call returns, unless `ready=False`. All end with the test.
    """
    started: list[WorkerProcess] = []

    def start(name: str, *arguments: str, ready: bool = True, **env: str) -> WorkerProcess:
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)},
            "STREAMER_REDIS_URL": settings.redis_url or "",
            "STREAMER_DATA_DIR": str(settings.data_dir),
            "STREAMER_LOG_LEVEL": settings.log_level,
            "PYTHONPATH": os.pathsep.join(filter(None, (ROOT, os.environ.get("PYTHONPATH")))),
            "OMP_NUM_THREADS": "1",
            **env,
        }
        module = name if "." in name else f"workers.{name}"
        log = tmp_path / f"{module}-{len(started)}.log"
        process = spawn_python(["-m", module, *arguments], env=environment, log=log)
        worker = WorkerProcess(process, log)
        started.append(worker)
        if ready:
            worker.wait_for('"ready"')
        return worker

    yield start
    for worker in started:
        stop(worker.process)
        kill_session(worker.process)
