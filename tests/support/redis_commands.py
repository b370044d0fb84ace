"""The commands that a piece of code sends to a real Redis."""

from collections.abc import Callable

import redis

_CONNECTING = {"AUTH", "CLIENT", "HELLO", "SELECT"}


def commands_of(client: redis.Redis, call: Callable[[], object]) -> list[str]:
    """Return the names of the commands that the server receives while `call` runs; what a script
    does counts as its one command."""
    sent: list[str] = []
    with client.monitor() as commands:
        call()
        client.echo("end")
        for command in commands.listen():
            name = command["command"].split()[0].upper()
            if name == "ECHO":
                break
            if command["client_type"] != "lua" and name not in _CONNECTING:
                sent.append(name)
    return sent
