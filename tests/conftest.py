"""Fixtures that all tests share: a real Valkey, settings for it, real worker processes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
import redis

from streamer.connections import Connections, connect
from streamer.local.process import spawn, stop
from streamer.local.redis_server import EmbeddedServer
from streamer.settings import PREFIX, Settings
from tests.support.ingest_fixtures import bench, loopback, units  # noqa: F401 - fixtures
from tests.support.installation import installation, model_path  # noqa: F401

hypothesis.settings.register_profile("any machine", deadline=None)  # a slow example is no failure
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The developer's own STREAMER_* variables must not change a test."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One real server for the whole run; its `url` has the password in it."""
    with EmbeddedServer(
        tmp_path_factory.mktemp("valkey"), persistent=False, max_memory=512 * 2**20
    ) as server:
        yield server


@pytest.fixture
def redis_client(valkey: EmbeddedServer) -> Iterator[redis.Redis]:
    """A client of the session's server, emptied first."""
    client = connect(valkey.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def settings(valkey: EmbeddedServer, redis_client: redis.Redis, tmp_path: Path) -> Settings:
    """Settings of an installation that is empty: no keys, no files."""
    return Settings(redis_url=valkey.url, data_dir=tmp_path / "data", log_level="debug")


@pytest.fixture
def connections(settings: Settings) -> Iterator[Connections]:
    """Open connections to the server that `settings` names."""
    with Connections(settings) as opened:
        yield opened


class WorkerProcess:
    """A real `python -m workers.X`, with its log in a file."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def output(self) -> str:
        """Everything that the process has written so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, timeout: float = 60.0) -> None:
        """Wait until it has written `text`; fail when it ends or `timeout` passes first."""
        deadline = time.monotonic() + timeout
        while text not in self.output:
            if self.process.poll() is not None:
                pytest.fail(f"ended with {self.process.returncode} before {text!r}:\n{self.output}")
            if time.monotonic() > deadline:
                pytest.fail(f"no {text!r} within {timeout} s:\n{self.output}")
            time.sleep(0.02)

    def wait(self, timeout: float = 60.0) -> int:
        """Wait for the end; its exit code."""
        return self.process.wait(timeout)

    def terminate(self) -> None:
        """SIGTERM: please finish."""
        self.process.terminate()

    def kill(self) -> None:
        """SIGKILL: the process learns nothing of it."""
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
            **{k: v for k, v in os.environ.items() if not k.startswith(PREFIX)},
            "STREAMER_REDIS_URL": settings.redis_url or "",
            "STREAMER_DATA_DIR": str(settings.data_dir),
            "STREAMER_LOG_LEVEL": settings.log_level,
            "OMP_NUM_THREADS": "1",
            **env,
        }
        module = name if "." in name else f"workers.{name}"
        log = tmp_path / f"{module}-{len(started)}.log"
        process = spawn([sys.executable, "-m", module, *arguments], env=environment, log=log)
        worker = WorkerProcess(process, log)
        started.append(worker)
        if ready:
            worker.wait_for('"ready"')
        return worker

    yield start
    for worker in started:
        stop(worker.process)
        with contextlib.suppress(ProcessLookupError):  # whatever it left behind in its session
            os.killpg(worker.process.pid, signal.SIGKILL)


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait for a condition that another process will make true: `eventually(lambda: ...)`."""

    def wait(condition: Callable[[], object], timeout: float = 60.0, message: str = "") -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(message or f"did not come true within {timeout} s")
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny NVILA-Lite of the published layout with random weights: real, fast, and clueless."""
    from nvila_core.checkpoint.random_checkpoint import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny-random")
