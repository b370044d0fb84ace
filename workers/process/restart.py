"""A worker that broke down begins again as a fresh process; but not for ever."""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import structlog

_log = structlog.get_logger(__name__)

WITHIN = 600.0
"""Seconds that a restart counts."""

_VARIABLE = "NVILA_WORKER_RESTARTS"  # when this program began again, seconds since the epoch
_DESCRIPTORS = Path("/proc/self/fd")


class NeedsRestart(Exception):  # noqa: N818 - a request, not an error
    """Raised by a program that only a fresh process can carry on; its text says why."""


def recent(now: float | None = None) -> list[float]:
    """When this program began again, lately: seconds since the epoch."""
    now = time.time() if now is None else now
    times = []
    for word in os.environ.get(_VARIABLE, "").split(","):
        with contextlib.suppress(ValueError):
            times.append(float(word))
    return [moment for moment in times if now - WITHIN < moment <= now]


def let_signals_end_it() -> None:
    """From now on SIGTERM and SIGINT end the process, as before any handler was set: one that was
    caught just before a restart would be forgotten by it."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def begin_again(reason: str, most: int) -> str:
    """Replace this process by a fresh one that runs the same command.

    It keeps its process id, its log and its parent, and the device's memory is free for it. Returns
    only when there were `most` restarts lately: a sentence to end with.
    """
    now = time.time()
    before = recent(now)
    if len(before) < most:
        _log.error("restarting", reason=reason, restart=len(before) + 1, most=most)
        os.environ[_VARIABLE] = ",".join(f"{moment:.3f}" for moment in (*before, now))
        _replace_process()
    return (
        f"The worker broke down {len(before) + 1} times within {WITHIN / 60:.0f} minutes and gives "
        f"up (the last time: {reason}): check the device and the log, then start it again."
    )


def _replace_process() -> NoReturn:
    let_signals_end_it()
    _keep_nothing_open()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _keep_nothing_open() -> None:
    # Python's own files end with exec; a driver's may not, and with them the memory it holds.
    if _DESCRIPTORS.is_dir():
        for name in os.listdir(_DESCRIPTORS):
            if int(name) > 2:
                with contextlib.suppress(OSError):  # that of the listing itself
                    os.set_inheritable(int(name), False)
