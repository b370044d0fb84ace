"""A real Valkey that refuses work for as long as a test wants, in each way that Redis knows."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import redis

from streamer.local.redis_server import EmbeddedServer
from tests.support.relay import Relay

USER, PASSWORD = "streamer", "m00dy-secret"

SCRIPTED = {
    "LOADING": "LOADING Redis is loading the dataset in memory",
    "CLUSTERDOWN": "CLUSTERDOWN The cluster is down",
    "TRYAGAIN": "TRYAGAIN Multiple keys request during rehashing of slot",
    "INPROG": "INPROG Failover already in progress",
}
"""Errors that one server cannot be brought to: it gives them on order."""

_LIMIT = 512 << 20

_LOGIN = (b"AUTH", b"HELLO", b"CLIENT", b"SELECT")


class _Refuser(Relay):
    """Passes commands on, or replaces each by one that the server answers with `error`."""

    error: str | None = None

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n")
        command = [head]
        for _ in range(int(head[1:])):
            size = await reader.readuntil(b"\r\n")
            command += [size, await reader.readexactly(int(size[1:]) + 2)]
        if self.error is None or command[2].strip().upper() in _LOGIN:
            return b"".join(command)
        script = f"return redis.error_reply('{self.error}')".encode()
        words = (b"EVAL", script, b"0")
        return b"*3\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


class MoodyRedis:
    """A server for the programs under test (`url`), and for the test (`admin`).

    `refusing(kind)` lets it refuse work inside a `with` block.
    """

    def __init__(self, directory: Path) -> None:
        self._server = EmbeddedServer(
            directory / "moody",
            persistent=False,
            max_memory=_LIMIT,
            extra_config=["enable-protected-configs local"],
        )
        self._nowhere = directory / "nowhere"

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._server)
            self._relay = stack.enter_context(_Refuser(self._server.port))
            self.admin = stack.enter_context(redis.Redis.from_url(self._server.url, protocol=2))
            self._user(f">{PASSWORD}", "~*", "&*", "+@all")
            self._close = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    @property
    def url(self) -> str:
        """The address for programs, with their user and password."""
        return f"redis://{USER}:{PASSWORD}@127.0.0.1:{self._relay.port}/0"

    def _user(self, *rules: str) -> None:
        self.admin.execute_command("ACL", "SETUSER", USER, "on", *rules)

    @contextlib.contextmanager
    def refusing(self, kind: str) -> Iterator[None]:
        """Refuse work in the way of `kind`, a key of KINDS."""
        with KINDS[kind](self):
            yield

    @contextlib.contextmanager
    def _configured(self, **changes: object) -> Iterator[None]:
        names = {name.replace("_", "-"): value for name, value in changes.items()}
        before = {name: self.admin.config_get(name)[name] for name in names}
        for name, value in names.items():
            self.admin.config_set(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                self.admin.config_set(name, value)

    @contextlib.contextmanager
    def _readonly(self) -> Iterator[None]:
        self.admin.execute_command("REPLICAOF", "127.0.0.1", "1")
        try:
            yield
        finally:
            self.admin.execute_command("REPLICAOF", "NO", "ONE")

    @contextlib.contextmanager
    def _masterdown(self) -> Iterator[None]:
        with self._configured(replica_serve_stale_data="no"), self._readonly():
            yield

    @contextlib.contextmanager
    def _noperm(self) -> Iterator[None]:
        self._user("-@write", "-eval", "-evalsha")
        try:
            yield
        finally:
            self._user("+@all")

    @contextlib.contextmanager
    def _misconf(self) -> Iterator[None]:
        self._nowhere.mkdir(exist_ok=True)
        changes = {
            "dir": str(self._nowhere),
            "save": "3600 1",
            "stop_writes_on_bgsave_error": "yes",
        }
        with self._configured(**changes):
            self._nowhere.rmdir()
            self.admin.bgsave()
            while self.admin.info("persistence")["rdb_last_bgsave_status"] != "err":
                time.sleep(0.02)
            yield
        self.admin.bgsave()

    @contextlib.contextmanager
    def _busy(self) -> Iterator[None]:
        script = threading.Thread(target=self._loop, daemon=True)
        with self._configured(busy_reply_threshold=50):
            script.start()
            try:
                yield
            finally:
                self.admin.execute_command("SCRIPT", "KILL")
                script.join(60)

    def _loop(self) -> None:
        with (
            redis.Redis.from_url(self._server.url, protocol=2) as client,
            contextlib.suppress(redis.exceptions.RedisError),
        ):
            client.eval("while true do end", 0)

    @contextlib.contextmanager
    def _maxclients(self) -> Iterator[None]:
        with self._configured(maxclients=1):
            self.admin.execute_command("CLIENT", "KILL", "TYPE", "normal")
            self.admin.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            yield

    @contextlib.contextmanager
    def _scripted(self, error: str) -> Iterator[None]:
        self._relay.error = error
        try:
            yield
        finally:
            self._relay.error = None


def _answering(error: str) -> Callable[[MoodyRedis], contextlib.AbstractContextManager[None]]:
    return lambda server: server._scripted(error)


KINDS: dict[str, Callable[[MoodyRedis], contextlib.AbstractContextManager[None]]] = {
    "READONLY": MoodyRedis._readonly,
    "MASTERDOWN": MoodyRedis._masterdown,
    "OOM": lambda server: server._configured(maxmemory=1),
    "NOREPLICAS": lambda server: server._configured(min_replicas_to_write=1),
    "NOPERM": MoodyRedis._noperm,
    "MISCONF": MoodyRedis._misconf,
    "BUSY": MoodyRedis._busy,
    "MAXCLIENTS": MoodyRedis._maxclients,
    **{kind: _answering(error) for kind, error in SCRIPTED.items()},
}
"""Every way to refuse work."""
