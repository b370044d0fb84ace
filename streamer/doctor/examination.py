"""All checks, side by side."""

import threading
import time
from collections.abc import Callable, Iterable

from streamer.doctor import machine, model, redis_server
from streamer.doctor.check import Check, check, told
from streamer.settings import Settings

LIMIT = 9.0
"""Seconds that all checks together may take; those that need longer are told as unfinished."""

Examination = Callable[[Settings], Iterable[Check]]


def examine(settings: Settings, limit: float = LIMIT) -> list[Check]:
    """All checks of this machine under `settings`, side by side, within `limit` seconds."""
    deadline = time.monotonic() + limit
    names: dict[str, Examination] = {
        "python": machine.python,
        "redis": redis_server.servers,
        "model": lambda given: model.model(given, deadline - 0.5),
        "codecs": machine.codecs,
        "hardware": machine.hardware,
        "disk": machine.disk,
        "limits": machine.limits,
    }
    found: dict[str, list[Check]] = {}

    def look(name: str, examination: Examination) -> None:
        try:
            found[name] = list(examination(settings))
        except Exception as error:  # a check that breaks must not hide the others
            found[name] = [check(name, "fail", f"The check broke: {told(error)}.")]

    threads = {
        name: threading.Thread(target=look, args=(name, examination), daemon=True)
        for name, examination in names.items()
    }
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        if name not in found:
            message = f"The check did not end within {limit:g} s: the machine is very busy."
            found[name] = [check(name, "warn", message)]
    return [check for name in names for check in found[name]]
