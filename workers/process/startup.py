"""Start, end and restart a worker program: what all of them have in common."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

import structlog

from streamer.errors import StreamerError
from streamer.health.sick_gpus import DEVICE_LOST
from streamer.logging_setup import configure_logging
from streamer.media.urls import redact
from streamer.settings import Settings, load_settings
from streamer.tracing import end_tracing, start_tracing
from workers.process import malloc
from workers.process.restart import NeedsRestart, restart_process

_log = structlog.get_logger(__name__)


def run_program(name: str, program: Callable[[Settings, threading.Event], None]) -> int:
    """Run `program(settings, stopping)` and return the exit code. Traces call it `name`.

    SIGTERM and SIGINT end it at once with exit code 0, until the program (or the ThreadWorker that
    it runs) handles them. A StreamerError becomes one sentence in the log and exit code 1;
    NeedsRestart becomes a fresh process, at most `max_restarts` times; then the code is
    DEVICE_LOST.
    """
    malloc.limit_arenas()
    malloc.keep_trimmed()
    stopping = threading.Event()
    settings: Settings | None = None

    def quit_early(_signum: int, _frame: FrameType | None) -> NoReturn:
        exit_process(0)  # not SystemExit: a library that is being imported may catch it

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, quit_early)
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        start_tracing(settings, name)
        program(settings, stopping)
    except StreamerError as error:
        if settings is None:  # the log is not set up
            print(redact(error.message), file=sys.stderr, flush=True)
        else:
            _log.error(error.message, exc_info=settings.log_level == "debug")
        return 1
    except NeedsRestart as error:
        assert settings is not None
        end_tracing()  # the process is replaced
        _log.error(restart_process(str(error), settings.max_restarts))
        return DEVICE_LOST
    finally:
        end_tracing()
    return 0


def stop_on_signals(stopping: threading.Event) -> None:
    """Let SIGTERM and SIGINT set `stopping`, for a program that checks it and ends."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())


def exit_process(code: int) -> NoReturn:
    """End the process at once: threads that hang in native code must not keep it alive."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
