"""Logs of the worker processes: one line an event on stderr, never a password."""

import logging
import sys
import threading
from collections.abc import MutableMapping
from types import TracebackType
from typing import Any

import structlog

_NOISY = ("rq.worker", "rq.job", "rq.registry", "rq.queue", "httpx", "urllib3", "libav")


def redact_secrets(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """A structlog processor: masks the passwords in every text of the event."""
    from streamer.media.urls import redact

    for key, value in event.items():
        if isinstance(value, str):
            event[key] = redact(value)
        elif isinstance(value, BaseException | list | tuple | dict):
            event[key] = redact(str(value))
    return event


def configure(level: str = "info") -> None:
    """Send structlog and the standard library's logging to stderr from `level` on.

    Coloured lines on a terminal, JSON otherwise.
    """
    threshold = logging.getLevelNamesMapping()[level.upper()]
    # A traceback holds texts of its own, so it is made into one before the secrets go.
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact_secrets,
    ]
    terminal = sys.stderr.isatty()
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.stdlib.PositionalArgumentsFormatter(),
                *shared,
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    for name in _NOISY:
        quiet = logging.INFO if threshold <= logging.DEBUG else logging.WARNING
        logging.getLogger(name).setLevel(max(threshold, quiet))
    sys.excepthook = _report_crash
    threading.excepthook = lambda args: _report_crash(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )


def _report_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What Python prints when a program or thread dies of an exception, without the passwords."""
    if not issubclass(kind, SystemExit | KeyboardInterrupt):
        structlog.get_logger(__name__).critical("crashed", exc_info=(kind, error, trace))
