"""The programs of a cluster, each with cables of its own to the two Redis servers."""

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from nvila_core.checkpoint.random_checkpoint import write_checkpoint
from streamer.local.process import spawn, stop
from streamer.local.redis_server import EmbeddedServer
from streamer.service import Service
from streamer.settings import ENV_PREFIX, Settings
from tests.support.relay import Relay

PROGRAMS = {
    "ingest-1": "workers.ingest",
    "ingest-2": "workers.ingest",
    "model-1": "workers.gpu",
    "model-2": "workers.gpu",
    "recorder": "workers.recorder",
}
"""Programs of the cluster: name to module."""

_MAX_DOWN = 3.0
"""Seconds, at most, after which what a fault ended is started again, as a supervisor does."""


class Cable(Relay):
    """A connection to a server that can be cut: nothing passes, and neither end notices."""

    cut = False

    async def pause(self) -> None:
        """Wait until data may pass."""
        while self.cut:
            await asyncio.sleep(0.02)


class Machine:
    """One program, its cables, and the faults that it can suffer.

    Attributes:
        name: name of the program in the ledger.
        starts: how often it was started.
        deaths: exit codes with which it ended although it was ready and no fault ended it.
        failed_starts: how often it ended before it was ready: a server was silent when it started.
        cables: to the server of the jobs and to that of the frames.
    """

    def __init__(
        self, name: str, module: str, folder: Path, servers: list[EmbeddedServer], model: Path
    ) -> None:
        self.name = name
        self.starts = 0
        self.deaths: list[int] = []
        self.failed_starts = 0
        self.log = folder / f"{name}.log"
        self.cables = [Cable(server.port) for server in servers]
        for cable in self.cables:
            cable.__enter__()
        urls = [
            urlsplit(server.url)._replace(netloc=_through(server.url, cable.port)).geturl()
            for server, cable in zip(servers, self.cables, strict=True)
        ]
        variables = {
            "REDIS_URL": urls[0],
            "FRAMES_REDIS_URL": urls[1],
            "DATA_DIR": str(folder / "data"),
            "MODEL": str(model),
            "RECONNECT_CAP": "3",
            "JOB_TIMEOUT": "60",
        }
        kept = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
        self._environment = {
            **kept,
            "OMP_NUM_THREADS": "1",
            **{ENV_PREFIX + key: value for key, value in variables.items()},
        }
        self._command = [sys.executable, "-m", module]
        self._process: subprocess.Popen[bytes] | None = None
        self._expected_end = False
        self._start_at = 0.0
        self._log_start = 0

    def tick(self) -> None:
        """Start the program if it is due; note an end that no fault caused."""
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                return
            if not self._expected_end:
                if b'"ready"' in self.log.read_bytes()[self._log_start :]:
                    self.deaths.append(code)
                else:
                    self.failed_starts += 1
            self._process = None
            self._start_at = max(self._start_at, time.monotonic() + 0.5)
        if time.monotonic() >= self._start_at:
            self._log_start = self.log.stat().st_size if self.log.exists() else 0
            self._process = spawn(self._command, env=self._environment, log=self.log)
            self._expected_end = False
            self.starts += 1

    def end(self, number: signal.Signals, down: float) -> None:
        """Send a signal that ends the program; `tick` starts it again after `down` seconds."""
        self._expected_end = True
        self._start_at = time.monotonic() + min(down, _MAX_DOWN)
        self._signal(number)

    def freeze(self) -> None:
        """Stop the program in mid-step."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen program continue."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the program for good."""
        if self._process is not None:
            self.thaw()
            stop(self._process, 10.0)
        for cable in self.cables:
            cable.__exit__()

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


class Cluster:
    """Two Redis servers, two ingest workers, two model workers and a recorder.

    Args:
        folder: for data and logs.

    Attributes:
        main, frames: the servers.
        machines: the programs.
        settings: those of a client on the machine of the servers.
    """

    def __init__(self, folder: Path) -> None:
        # Every write is on disk before it is confirmed: only then does a ledger have to balance.
        durable = ["appendfsync always"]
        self.main = EmbeddedServer(
            folder / "main", persistent=True, max_memory=256 << 20, extra_config=durable
        )
        self.frames = EmbeddedServer(folder / "frames", persistent=False, max_memory=256 << 20)
        self._folder = folder
        self.machines: list[Machine] = []
        self._stopped = threading.Event()

    def __enter__(self) -> "Cluster":
        model = write_checkpoint(self._folder / "model")
        self.main.start()
        self.frames.start()
        self.settings = Settings(
            redis_url=self.main.url,
            frames_redis_url=self.frames.url,
            data_dir=self._folder / "data",
            reconnect_cap=3.0,
            job_timeout=60.0,
        )
        self.machines = [
            Machine(name, module, self._folder, [self.main, self.frames], model)
            for name, module in PROGRAMS.items()
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            machine.stop()
        for server in (self.main, self.frames):
            self.thaw(server)
            server.stop()

    def tick(self) -> None:
        """Supervise the programs; call it from the main thread a few times a second."""
        for machine in self.machines:
            machine.tick()

    @contextlib.contextmanager
    def client(self) -> Iterator[Service]:
        """Yield a client on the machine of the servers."""
        with Service(self.settings, patient=True) as client:
            yield client

    @staticmethod
    def freeze(server: EmbeddedServer) -> None:
        """Stop a server in mid-step."""
        if server.pid is not None:
            os.kill(server.pid, signal.SIGSTOP)

    @staticmethod
    def thaw(server: EmbeddedServer) -> None:
        """Let a frozen server continue."""
        if server.pid is not None:
            os.kill(server.pid, signal.SIGCONT)

    def wait_until_ready(self, timeout: float) -> None:
        """Wait until all programs run. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        with self.client() as client:
            while client.jobs.workers() != {"ingest": 2, "clips": 2}:
                self.tick()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the cluster did not start within {timeout:g} s")
                time.sleep(0.2)


def _through(url: str, port: int) -> str:
    """Return user, password and host of `url` with another port."""
    return f"{urlsplit(url).netloc.rpartition(':')[0]}:{port}"


def pick_seconds(rng: random.Random, low: float, high: float) -> float:
    """Draw a duration, short ones as often as long ones of the same ratio."""
    return float(low * (high / low) ** rng.random())
