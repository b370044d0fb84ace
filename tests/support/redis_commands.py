"""The commands that a piece of code sends to a real Redis, and its round trips."""

from collections.abc import Callable
from typing import Any

import pytest
import redis
from redis.connection import AbstractConnection

_BESIDE = {"AUTH", "CLIENT", "HELLO", "PING", "SELECT", "TIME"}
"""What opens a connection, asks whether it is still there after a while, or sets a clock every few
seconds."""


def commands_of(client: redis.Redis, call: Callable[[], object]) -> list[str]:
    """Return the names of the commands that the server receives while `call` runs; what a script
    does counts as its one command. Not those that connections and clocks send by themselves."""
    sent: list[str] = []
    with client.monitor() as commands:
        call()
        client.echo("end")
        for command in commands.listen():
            name = command["command"].split()[0].upper()
            if name == "ECHO":
                break
            if command["client_type"] != "lua" and name not in _BESIDE:
                sent.append(name)
    return sent


class Trips:
    """Round trips to Redis: how often something was sent, however many commands it held.

    Attributes:
        sent: the first command of each, in order.
        commands: how many commands each held.
    """

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.commands: list[int] = []

    def of(self, call: Callable[[], object]) -> list[str]:
        """Return the first commands of what all threads send while `call` runs."""
        before = len(self.sent)
        call()
        return self.sent[before:]


def counted_trips(monkeypatch: pytest.MonkeyPatch) -> Trips:
    """Return the round trips that this process makes from now on, but for those that connections
    and clocks make by themselves."""
    trips, send = Trips(), AbstractConnection.send_packed_command

    def counted(self: AbstractConnection, command: Any, *args: Any, **options: Any) -> Any:
        data = command if isinstance(command, bytes) else b"".join(command)
        name = data.split(b"\r\n", 3)[2].decode()
        if name not in _BESIDE:
            trips.commands.append(_count(data))
            trips.sent.append(name)
        return send(self, command, *args, **options)

    monkeypatch.setattr(AbstractConnection, "send_packed_command", counted)
    return trips


def _count(data: bytes) -> int:
    """Return how many commands `data` holds: arrays of strings, as clients send them."""
    count = at = 0
    while at < len(data):
        end = data.index(b"\r\n", at)
        strings, at = int(data[at + 1 : end]), end + 2
        for _ in range(strings):
            end = data.index(b"\r\n", at)
            at = end + 2 + int(data[at + 1 : end]) + 2
        count += 1
    return count
