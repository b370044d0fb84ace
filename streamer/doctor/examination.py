"""Run all checks in parallel."""

import threading
import time
from collections.abc import Callable, Iterable, Mapping

from streamer.doctor import cameras, database, frames, machine, model, mqtt, redis_server
from streamer.doctor.check import Check, check, describe_error
from streamer.settings import Settings

MAX_EXAMINATION_SECONDS = 9.0
"""Maximum seconds for all checks together; slower ones are reported as unfinished."""

Examination = Callable[[Settings], Iterable[Check]]


def examine(
    settings: Settings,
    limit: float = MAX_EXAMINATION_SECONDS,
    examinations: Mapping[str, Examination] | None = None,
) -> list[Check]:
    """Run `examinations`, by default all, in parallel within `limit` seconds.

    An examination that raises gives a failed check, and one that does not end in time a warning.
    """
    deadline = time.monotonic() + limit
    if examinations is None:
        examinations = {
            "python": machine.python,
            "redis": redis_server.servers,
            "database": database.database,
            "mqtt": mqtt.broker,
            "cameras": cameras.moved,
            "frames": frames.spans,
            "model": lambda given: model.model(given, deadline - 0.5),
            "codecs": machine.codecs,
            "hardware": machine.hardware,
            "gpus": machine.gpus,
            "disk": machine.disk,
            "limits": machine.limits,
        }
    found: dict[str, list[Check]] = {}

    def run(name: str, examination: Examination) -> None:
        try:
            found[name] = list(examination(settings))
        except Exception as error:  # a check that fails to run must not hide the others
            found[name] = [
                check(name, "fail", f"The check could not run: {describe_error(error)}.")
            ]

    threads = {
        name: threading.Thread(target=run, args=(name, examination), daemon=True)
        for name, examination in examinations.items()
    }
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(0.0, deadline - time.monotonic()))
        if name not in found:
            message = f"No result within {limit:g} s: try again when the machine is less busy."
            found[name] = [check(name, "warn", message)]
    return [check for name in examinations for check in found[name]]
