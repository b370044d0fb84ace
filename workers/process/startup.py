"""What all worker programs have in common: they start with one clear sentence, or not at all."""

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
from streamer.settings import Settings, load_settings
from workers.process.logging import configure
from workers.process.restart import NeedsRestart, begin_again

_log = structlog.get_logger(__name__)


def run(program: Callable[[Settings, threading.Event], None]) -> int:
    """Run `program(settings, stopping)` and return the exit code.

    SIGTERM and SIGINT end it at once, with exit code 0, until the program (or the ThreadWorker that
    it runs) takes them over. A StreamerError becomes one sentence on stderr and exit code 1;
    NeedsRestart becomes a fresh process, within `max_restarts`.
    """
    stopping = threading.Event()
    settings: Settings | None = None

    def quit_early(_signum: int, _frame: FrameType | None) -> NoReturn:
        leave(0)  # not SystemExit: a library that is being imported may catch it and go on

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, quit_early)
    try:
        settings = load_settings()
        configure(settings.log_level)
        program(settings, stopping)
    except StreamerError as error:
        if settings is not None and settings.log_level == "debug":
            _log.exception("failed", code=error.code)
        print(error.message, file=sys.stderr, flush=True)
        return 1
    except NeedsRestart as error:
        assert settings is not None
        print(begin_again(str(error), settings.max_restarts), file=sys.stderr, flush=True)
        return 1
    return 0


def stop_on_signals(stopping: threading.Event) -> None:
    """From now on SIGTERM and SIGINT set `stopping`; the program looks at it and ends."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())


def leave(code: int) -> NoReturn:
    """End the process now: threads that hang in native code must not keep it alive."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)
