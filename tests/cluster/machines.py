"""The programs of a cluster, each on a host of its own, and the servers that they share."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import redis

from nvila_core.checkpoint.random_checkpoint import write_checkpoint
from streamer.errors import StreamerError
from streamer.local.process import spawn, stop
from streamer.redis_client.address import open_redis
from streamer.service import Service
from streamer.settings import ENV_PREFIX, Settings
from tests.cluster.network import Host, make_switch
from tests.cluster.servers import Postgres, RedisPair, RedisServer, SqliteFile

API_KEY = "cluster-key-0123456789"
API_PORT = 8080

PROGRAMS = {
    "ingest-1": ["workers.ingest"],
    "ingest-2": ["workers.ingest"],
    "model-1": ["workers.gpu"],
    "model-2": ["workers.gpu"],
    "model-3": ["workers.gpu"],
    "recorder": ["workers.recorder"],
    "api": ["streamer.cli", "serve"],
}
"""Programs of the cluster: the name of each and its host, to what `python -m` runs."""

LASTING = ("ingest-1", "model-1", "recorder", "api")
"""One program of each kind, which no fault ends where growth is judged."""

_SHORT_LIVES: dict[str, Any] = {"frame_ttl": 120, "query_ttl": 600, "results_maxlen": 2000}
"""Settings with which Redis holds as much after ten minutes as after hours."""

_SMALL_CACHES = {
    "tile_cache_bytes": 8 << 20,
    "frame_cache_bytes": 8 << 20,
    "kv_cache_tokens": 16384,
}
"""Caches of a model worker that are full after minutes, and then grow no more."""

_CONNECT_TIMEOUT = 60.0

_MAX_DOWN = 3.0
"""Seconds, at most, after which what a fault ended is started again, as a supervisor does."""


class Machine:
    """One program on its host, and the faults that it can suffer.

    Attributes:
        name: name of the program in the ledger.
        host: where it runs.
        starts: how often it was started.
        deaths: exit codes with which it ended although it was ready and no fault ended it.
        failed_starts: how often it ended before it was ready: a server was silent when it started.
    """

    def __init__(
        self, host: Host, arguments: list[str], folder: Path, variables: dict[str, str]
    ) -> None:
        self.name = host.name
        self.host = host
        self.starts = 0
        self.deaths: list[int] = []
        self.failed_starts = 0
        self.log = folder / f"{self.name}.log"
        self._clock = folder / f"{self.name}.clock"
        self.set_clock(0)
        kept = {key: value for key, value in os.environ.items() if not key.startswith(ENV_PREFIX)}
        self._environment = {
            **kept,
            "OMP_NUM_THREADS": "1",
            "CLOCK_SHIFT": str(self._clock),
            **variables,
        }
        self._command = host.command([sys.executable, "-m", *arguments])
        self._process: subprocess.Popen[bytes] | None = None
        self._expected_end = False
        self._start_at = 0.0
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """The process id of the program; None if it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def set_clock(self, ahead: int) -> None:
        """Let the wall clock of the host be `ahead` seconds ahead of what it should be."""
        with self._clock.open("r+b" if self._clock.exists() else "wb") as shift:
            shift.write(str(ahead).encode().ljust(16, b"\0"))

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

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)


class Cluster:
    """Redis with a replica and Sentinels, a server of frames, a database, two ingest workers, three
    model workers, a recorder and an API, each on a host of its own.

    Args:
        folder: for data and logs.
        database: `postgresql` or `sqlite`: the recorder and the API share the file.

    Attributes:
        jobs, frames, database: the servers.
        machines: the programs.
        settings: those of a client on the machine of this program.
        clocks: whether the clocks of the hosts can be set; it takes a C compiler.
    """

    def __init__(self, folder: Path, database: str = "postgresql") -> None:
        self._folder = folder
        self._dialect = database
        self.machines: list[Machine] = []
        self.clocks = shutil.which("cc") is not None

    def __enter__(self) -> "Cluster":
        make_switch()
        names = ["jobs-1", "jobs-2", "frames", "database", *PROGRAMS]
        hosts = {name: Host(name, number) for number, name in enumerate(names, 1)}
        model = write_checkpoint(self._folder / "model")
        self.jobs = RedisPair((hosts["jobs-1"], hosts["jobs-2"]), hosts["database"], self._folder)
        self.frames = RedisServer(hosts["frames"], self._folder, durable=False)
        self.database: Postgres | SqliteFile
        self.jobs.start()
        self.frames.start()
        if self._dialect == "sqlite":
            self.database = SqliteFile(self._folder)
        else:
            self.database = Postgres(hosts["database"], self._folder / "postgres.log")
            self.database.start()
        variables = {
            "REDIS_URL": self.jobs.url,
            "FRAMES_REDIS_URL": self.frames.url,
            "DATABASE_URL": self.database.url,
            "DATA_DIR": str(self._folder / "data"),
            "MODEL": str(model),
            "RECONNECT_CAP": "3",
            "JOB_TIMEOUT": "60",
            **{key.upper(): str(value) for key, value in (_SHORT_LIVES | _SMALL_CACHES).items()},
            "API_KEYS": API_KEY,
            "API_PORT": str(API_PORT),
        }
        self.settings = Settings(
            redis_url=self.jobs.url,
            frames_redis_url=self.frames.url,
            database_url=self.database.url,
            data_dir=self._folder / "data",
            reconnect_cap=3.0,
            job_timeout=60.0,
            **_SHORT_LIVES,
        )
        for name, arguments in PROGRAMS.items():
            own = {ENV_PREFIX + key: value for key, value in variables.items()}
            own[f"{ENV_PREFIX}API_HOST"] = hosts[name].address
            if self.clocks:
                own["LD_PRELOAD"] = str(self._clock_shim)
            self.machines.append(Machine(hosts[name], arguments, self._folder, own))
        return self

    def __exit__(self, *_: object) -> None:
        for machine in self.machines:
            machine.stop()
        self.jobs.stop()
        self.frames.stop()
        if isinstance(self.database, Postgres):
            self.database.stop()

    @cached_property
    def _clock_shim(self) -> Path:
        library = self._folder / "clock_shim.so"
        source = Path(__file__).with_name("clock_shim.c")
        command = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True)
        return library

    @property
    def api_url(self) -> str:
        """The address of the API."""
        (host,) = (machine.host for machine in self.machines if machine.name == "api")
        return f"http://{host.address}:{API_PORT}"

    def open_jobs(self) -> redis.Redis:
        """Return a client of the primary, whichever server it is."""
        return open_redis(self.jobs.url, connect_timeout=2, timeout=5, retries=3)

    def tick(self) -> None:
        """Supervise programs and servers; call it from the main thread a few times a second."""
        self.jobs.tick()
        for machine in self.machines:
            machine.tick()

    @contextlib.contextmanager
    def client(self) -> Iterator[Service]:
        """Yield a client on the machine of the servers, as soon as the primary answers. Raises
        StreamerError if it does not within a minute."""
        deadline = time.monotonic() + _CONNECT_TIMEOUT
        while True:
            try:
                opened = Service(self.settings, patient=True)
                break
            except StreamerError:  # a replica is about to take its place
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)
        with opened as client:
            yield client

    def wait_until_ready(self, timeout: float) -> None:
        """Wait until all programs run. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        with self.client() as client:
            while client.jobs.workers() != {"ingest": 2, "clips": 3}:
                self.tick()
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the cluster did not start within {timeout:g} s")
                time.sleep(0.2)


def pick_seconds(rng: random.Random, low: float, high: float) -> float:
    """Draw a duration, short ones as often as long ones of the same ratio."""
    return float(low * (high / low) ** rng.random())
