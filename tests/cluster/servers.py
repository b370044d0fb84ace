"""What the programs of a cluster share: Redis with a replica and Sentinels, and a database."""

import contextlib
import math
import os
import pwd
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import redis

from streamer.local.process import spawn, stop
from streamer.local.redis_server import server_binary
from tests.cluster.network import SCRATCH, Host, mount_disk
from tests.support.postgres import program

PASSWORD = "cluster"
SERVICE = "jobs"

REDIS_PORT, SENTINEL_PORT, POSTGRES_PORT = 6379, 26379, 5432

MAX_MEMORY = 192 << 20
_DISK = 256  # megabytes
_START_TIMEOUT = 60.0
_FORGOTTEN_AFTER = 6.0
"""Seconds after which no Sentinel promotes a replica by what it knew of it before."""


class Server:
    """A program on a host that faults can end, freeze and start again.

    Attributes:
        host: where it runs.
        down: whether a fault has ended it, and not yet started it again.
    """

    def __init__(self, host: Host, command: list[str | Path], log: Path) -> None:
        self.host = host
        self._command = host.command(command)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self.down = True

    @property
    def runs(self) -> bool:
        """Whether its process is there, frozen or not."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, unless it runs."""
        self.down = False
        if self._process is None or self._process.poll() is not None:
            self._process = spawn(self._command, log=self._log)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it, if it runs."""
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def kill(self) -> None:
        """End it at once, until it is started again."""
        self.down = True
        self.signal(signal.SIGKILL)

    def stop(self) -> None:
        """End it for good."""
        self.signal(signal.SIGCONT)
        if self._process is not None:
            stop(self._process, 10.0)


class RedisServer(Server):
    """A Redis on a host, with a small disk of its own if it is `durable`.

    `repairs` is how often its data was deleted because it could not read it.
    """

    def __init__(self, host: Host, folder: Path, *lines: str, durable: bool = True) -> None:
        self._folder = folder / host.name
        self.repairs = 0
        self._promotable = True
        self._ended_at = math.inf
        if durable:
            mount_disk(self._folder, _DISK)
            lines = (*lines, "appendonly yes", "min-replicas-to-write 1", "min-replicas-max-lag 2")
        self._folder.mkdir(exist_ok=True)
        self._config = self._folder / "redis.conf"
        base = (
            f"port {REDIS_PORT}",
            "protected-mode no",
            'save ""',
            f"dir {self._folder}",
            f"maxmemory {MAX_MEMORY}",
            f"requirepass {PASSWORD}",
            f"masterauth {PASSWORD}",
        )
        self._config.write_text("\n".join([*base, *lines]) + "\n")
        super().__init__(host, [server_binary(), self._config], folder / f"redis-{host.name}.log")

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://:{PASSWORD}@{self.host.address}:{REDIS_PORT}/0"

    def client(self) -> redis.Redis:
        """Return a client of this very server."""
        return redis.Redis.from_url(self.url, socket_timeout=2, socket_connect_timeout=2)

    def fill_disk(self) -> Callable[[], None]:
        """Leave no room on its disk; return what undoes it."""
        return _fill(self._folder)

    def tick(self, other: "RedisServer") -> None:
        """Do what an operator does with a server that does not start, because it cannot read its
        own file after its disk was full: the other one, if it is the primary, has all of it."""
        if self.down or self.runs:
            self._ended_at = math.inf
        else:
            self._ended_at = min(self._ended_at, time.monotonic())
            if time.monotonic() - self._ended_at > _FORGOTTEN_AFTER and _is_primary(other):
                self._start_without_data(other)
        if not self._promotable and _replicates(self):
            with contextlib.suppress(redis.exceptions.RedisError), self.client() as client:
                client.config_set("replica-priority", 100)
                self._promotable = True

    def _start_without_data(self, primary: "RedisServer") -> None:
        """Start it as a replica that no Sentinel promotes: if the primary failed before it has all
        data, a promotion would delete all data."""
        shutil.rmtree(self._folder / "appendonlydir", ignore_errors=True)
        kept = [
            line
            for line in self._config.read_text().splitlines()
            if not line.startswith(("replicaof", "replica-priority"))
        ]
        replica = (f"replicaof {primary.host.address} {REDIS_PORT}", "replica-priority 0")
        self._config.write_text("\n".join([*kept, *replica]) + "\n")
        self._promotable = False
        self.repairs += 1
        self.start()


class RedisPair:
    """A primary, its replica, and three Sentinels that let the replica take over."""

    def __init__(self, hosts: tuple[Host, Host], third: Host, folder: Path) -> None:
        first, second = hosts
        self.servers = [
            RedisServer(first, folder),
            RedisServer(second, folder, f"replicaof {first.address} {REDIS_PORT}"),
        ]
        self._sentinels = [self._sentinel(host, first, folder) for host in (first, second, third)]

    def _sentinel(self, host: Host, primary: Host, folder: Path) -> Server:
        config = folder / f"sentinel-{host.name}.conf"
        watched = (
            f"monitor {SERVICE} {primary.address} {REDIS_PORT} 2",
            f"auth-pass {SERVICE} {PASSWORD}",
            f"down-after-milliseconds {SERVICE} 2000",
            f"failover-timeout {SERVICE} 6000",
        )
        lines = [f"port {SENTINEL_PORT}", "protected-mode no", f"dir {folder}"]
        config.write_text("\n".join([*lines, *(f"sentinel {each}" for each in watched)]) + "\n")
        command: list[str | Path] = [server_binary(), config, "--sentinel"]
        return Server(host, command, folder / f"sentinel-{host.name}.log")

    @property
    def url(self) -> str:
        """The address of the primary, whichever server it is."""
        hosts = ",".join(f"{each.host.address}:{SENTINEL_PORT}" for each in self._sentinels)
        return f"redis+sentinel://:{PASSWORD}@{hosts}/{SERVICE}/0"

    def start(self) -> None:
        """Start all and wait until they know each other."""
        for server in self.servers:
            server.start()
        _wait(lambda: _replicates(self.servers[1]), "the replica found no primary")
        for sentinel in self._sentinels:
            sentinel.start()
        _wait(self._complete, "the Sentinels did not find each other")

    def primary(self) -> RedisServer:
        """Return the server that says that it is the primary; the first if none does."""
        return next((each for each in self.servers if _is_primary(each)), self.servers[0])

    def tick(self) -> None:
        """Do what an operator does."""
        for server, other in (self.servers, reversed(self.servers)):
            server.tick(other)

    def stop(self) -> None:
        """End all."""
        for server in (*self._sentinels, *self.servers):
            server.stop()

    def _complete(self) -> bool:
        address = self._sentinels[0].host.address
        with redis.Redis(address, SENTINEL_PORT, protocol=2, socket_timeout=2) as client:
            state = client.sentinel_master(SERVICE)
        return bool(state["num-slaves"] == 1 and state["num-other-sentinels"] == 2)


class Postgres(Server):
    """PostgreSQL on a host, with an empty database; it runs as `nobody`, because not as root."""

    def __init__(self, host: Host, log: Path) -> None:
        initdb, postgres = program("initdb"), program("postgres")
        assert initdb is not None
        assert postgres is not None
        self._folder = SCRATCH / "postgres"
        self._folder.mkdir()
        nobody = pwd.getpwnam("nobody")
        os.chown(self._folder, nobody.pw_uid, nobody.pw_gid)
        user = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
        options = ["--no-locale", "-E", "UTF8", "-A", "trust", "-U", "test"]
        data = self._folder / "data"
        subprocess.run(
            [*user, initdb, "-D", data, *options], check=True, capture_output=True, cwd="/"
        )
        with (data / "pg_hba.conf").open("a") as access:
            access.write("host all all 10.77.0.0/24 trust\n")
        listening = ["-h", "*", "-p", str(POSTGRES_PORT), "-k", str(self._folder)]
        super().__init__(host, [*user, postgres, "-D", str(data), *listening], log)

    @property
    def url(self) -> str:
        """Its address, as the setting `database_url`."""
        return f"postgresql+psycopg://test@{self.host.address}:{POSTGRES_PORT}/postgres"

    def start(self) -> None:
        """Start it and wait until it answers."""
        import psycopg

        super().start()

        def answers() -> bool:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=2).close()
                return True
            return False

        _wait(answers, "PostgreSQL did not start")

    def crash(self) -> None:
        """End it at once, as a crash does."""
        self.signal(signal.SIGQUIT)

    def stop(self) -> None:
        """End it for good."""
        self.crash()
        super().stop()


class SqliteFile:
    """An SQLite file on a small disk, which the recorder and the API share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "database"
        mount_disk(self._folder, _DISK)
        self._file = self._folder / "timeline.db"

    @property
    def url(self) -> str:
        """Its address, as the setting `database_url`."""
        return f"sqlite:///{self._file}"

    def lock(self) -> Callable[[], None]:
        """Let no other program write; return what undoes it. Raises sqlite3.OperationalError."""
        connection = sqlite3.connect(self._file, timeout=0, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            connection.close()
            raise
        return connection.close

    def fill_disk(self) -> Callable[[], None]:
        """Leave no room on its disk; return what undoes it."""
        return _fill(self._folder)


def _is_primary(server: RedisServer) -> bool:
    with contextlib.suppress(redis.exceptions.RedisError), server.client() as client:
        return bool(client.info("replication")["role"] == "master")
    return False


def _replicates(server: RedisServer) -> bool:
    """Return whether it is a replica that has the data of its primary."""
    with contextlib.suppress(redis.exceptions.RedisError), server.client() as client:
        return bool(client.info("replication").get("master_link_status") == "up")
    return False


def _fill(disk: Path) -> Callable[[], None]:
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", 0) as file:
        while True:
            file.write(bytes(1 << 20))
    with contextlib.suppress(OSError), filler.open("ab", 0) as file:
        while True:  # what is left of the last piece
            file.write(bytes(1 << 10))
    return lambda: filler.unlink(missing_ok=True)


def _wait(condition: Callable[[], bool], failure: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT
    while True:
        with contextlib.suppress(redis.exceptions.RedisError, KeyError):
            if condition():
                return
        if time.monotonic() > deadline:
            raise TimeoutError(failure)
        time.sleep(0.1)
