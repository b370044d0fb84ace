"""Restart a worker that broke down as a fresh process, a limited number of times."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import structlog

_log = structlog.get_logger(__name__)

RESTART_WINDOW = 600.0
"""Seconds for which a restart counts."""

_VARIABLE = "NVILA_WORKER_RESTARTS"  # times of restarts, seconds of the monotonic clock
_DESCRIPTORS = Path("/proc/self/fd")


class NeedsRestart(Exception):  # noqa: N818 - a request, not an error
    """Raised by a program that only a fresh process can continue; its text says why."""


def recent_restarts(now: float | None = None) -> list[float]:
    """Return when this program was restarted within the last RESTART_WINDOW seconds, as
    seconds of the monotonic clock, which goes on when the process is replaced."""
    now = time.monotonic() if now is None else now
    times = []
    for word in os.environ.get(_VARIABLE, "").split(","):
        with contextlib.suppress(ValueError):
            times.append(float(word))
    return [moment for moment in times if now - RESTART_WINDOW < moment <= now]


def restore_default_signals() -> None:
    """Let SIGTERM and SIGINT end the process, as before any handler was set: a restart would forget
    one that a handler caught just before it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def restart_process(reason: str, limit: int) -> str:
    """Replace this process by a fresh one that runs the same command.

    The new process keeps the process id, the log and the parent, and the device's memory is free
    again. The call returns only when there were `limit` restarts within RESTART_WINDOW: the
    sentence to end with.
    """
    now = time.monotonic()
    before = recent_restarts(now)
    if len(before) < limit:
        _log.error("restarting", reason=reason, restart=len(before) + 1, limit=limit)
        os.environ[_VARIABLE] = ",".join(f"{moment:.3f}" for moment in (*before, now))
        _replace_process()
    return (
        f"The worker broke down {len(before) + 1} times within {RESTART_WINDOW / 60:.0f} minutes "
        f"and gives up (the last time: {reason}): check the device and the log, then start it "
        "again."
    )


def _replace_process() -> NoReturn:
    restore_default_signals()
    _close_descriptors_on_exec()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _close_descriptors_on_exec() -> None:
    """Close all files but the standard streams on exec: a driver's files would otherwise stay open,
    and with them the memory that it holds. Python's own do not."""
    if _DESCRIPTORS.is_dir():
        for name in os.listdir(_DESCRIPTORS):
            if int(name) > 2:
                with contextlib.suppress(OSError):  # the descriptor of the listing itself
                    os.set_inheritable(int(name), False)
