"""A Redis with a replica, and Sentinels that promote it when the primary dies."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import redis

from streamer.local.process import spawn, stop
from streamer.local.redis_server import server_binary

PASSWORD = "s3nt/nel p@ss"
ENCODED = "s3nt%2Fnel%20p%40ss"
SERVICE = "mymaster"


class SentinelSite:
    """Two servers and three Sentinels; `url` names the primary, whichever it is."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = contextlib.ExitStack()
        self._servers: dict[int, subprocess.Popen[bytes]] = {}
        self._sentinels: list[int] = []

    def __enter__(self) -> Self:
        first, second = free_port(), free_port()
        common = ["appendonly yes", f'requirepass "{PASSWORD}"', f'masterauth "{PASSWORD}"']
        self._start(first, common)
        self._start(second, [*common, f"replicaof 127.0.0.1 {first}"])
        self._wait(lambda: self.link(second) == "up")
        for _ in range(3):
            port = free_port()
            self._sentinels.append(port)
            watch = [
                f"monitor {SERVICE} 127.0.0.1 {first} 2",
                f'auth-pass {SERVICE} "{PASSWORD}"',
                f"down-after-milliseconds {SERVICE} 700",
                f"failover-timeout {SERVICE} 5000",
            ]
            self._start(port, [f"sentinel {line}" for line in watch], "--sentinel")
        self._wait(lambda: all(self._knows(port) for port in self._sentinels))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._sentinels)
        return f"redis+sentinel://:{ENCODED}@{hosts}/{SERVICE}/0"

    def primary(self) -> int:
        """Return the port of the primary that the Sentinels name."""
        with redis.Redis(port=self._sentinels[0], protocol=2) as client:
            return int(client.sentinel_get_master_addr_by_name(SERVICE)[1])

    def cut_replica(self) -> None:
        """Let the replica, which the Sentinels still reach, get nothing more from its primary."""
        (port,) = self._servers.keys() - {*self._sentinels, self.primary()}
        with redis.Redis(port=port, password=PASSWORD, protocol=2) as client:
            client.config_set("masterauth", "wrong")
            client.client_kill_filter(_type="master")

    def kill_primary(self) -> None:
        process = self._servers[self.primary()]
        process.kill()
        process.wait()

    def signal(self, port: int, number: signal.Signals) -> None:
        """Send a signal to a server."""
        self._servers[port].send_signal(number)

    def link(self, port: int) -> object:
        """Return the state of a replica's link to its primary; None of a primary."""
        with redis.Redis(port=port, password=PASSWORD, protocol=2) as client:
            return client.info("replication").get("master_link_status")

    def _knows(self, port: int) -> bool:
        with redis.Redis(port=port, protocol=2) as client:
            state = client.sentinel_master(SERVICE)
        return state["num-slaves"] == 1 and state["num-other-sentinels"] == 2

    def _start(self, port: int, lines: list[str], *arguments: str) -> None:
        folder = self._directory / str(port)
        folder.mkdir()
        config = folder / "server.conf"
        base = ["bind 127.0.0.1", f"port {port}", f'dir "{folder}"']
        config.write_text("\n".join([*base, *lines]) + "\n")
        process = spawn([server_binary(), config, *arguments], log=folder / "server.log")
        self._stack.callback(stop, process)
        self._servers[port] = process

    @staticmethod
    def _wait(condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(redis.exceptions.RedisError, KeyError):
                if condition():
                    return
            assert time.monotonic() < deadline, "the servers did not find each other"
            time.sleep(0.05)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
