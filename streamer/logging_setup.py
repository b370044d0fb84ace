"""Set up the log of a program: one event a line on stderr, without any password.

All programs of the service use it. Its redactor runs on every event, so no caller has to mask what
it logs.
"""

import logging
import sys
import threading
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Any

from streamer.media.urls import redact

if TYPE_CHECKING:
    from structlog.typing import Processor

_CHATTY = ("alembic", "rq.worker", "rq.job", "rq.registry", "rq.queue", "httpx", "urllib3", "libav")
"""Loggers of libraries whose details are of interest with level `debug` only."""


def configure_logging(level: str = "info") -> None:
    """Log events of structlog and of the standard library to stderr, from `level` on.

    They are coloured lines on a terminal, and JSON otherwise. Exceptions that end the program or a
    thread are logged too.
    """
    import structlog  # here: short commands log nothing, and should start fast

    threshold = logging.getLevelNamesMapping()[level.upper()]
    # A traceback quotes error messages, so it is rendered as text before passwords are masked.
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        redact_event,
    ]
    renderer: Processor = (
        structlog.dev.ConsoleRenderer()
        if sys.stderr.isatty()
        else structlog.processors.JSONRenderer()
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
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(threshold)
    chatty_threshold = threshold if threshold <= logging.DEBUG else logging.WARNING
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(threshold, chatty_threshold))
    sys.excepthook = _log_crash
    threading.excepthook = lambda args: _log_crash(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )
    sys.unraisablehook = lambda args: _log_crash(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )


def log_ready(**facts: Any) -> None:
    """Log that this program is ready, whatever the level: `streamer up` waits for this line."""
    import structlog

    logger = logging.getLogger("streamer.ready")
    logger.setLevel(logging.INFO)
    wrapper = structlog.make_filtering_bound_logger(logging.INFO)
    structlog.wrap_logger(logger, wrapper_class=wrapper).info("ready", **facts)


def log_about(**facts: str) -> AbstractContextManager[None]:
    """Return a context in which each line that this thread logs has `facts` too."""
    import structlog

    return structlog.contextvars.bound_contextvars(**facts)


def configure_logging_on_demand(level: str = "warning") -> None:
    """Call `configure_logging` once there is something to log: a short command rarely has."""
    logging.lastResort = _ConfigureLogging(level)


class _ConfigureLogging(logging.Handler):
    """Sets up the log at the first record, and passes the record on."""

    def __init__(self, level: str) -> None:
        super().__init__(logging.getLevelNamesMapping()[level.upper()])
        self._level_name = level

    def emit(self, record: logging.LogRecord) -> None:
        configure_logging(self._level_name)
        logging.getLogger().handle(record)


def redact_event(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Mask the passwords in every field of an event: a processor of structlog."""
    for key, value in event.items():
        if not key.startswith("_"):  # those belong to structlog's formatter, which removes them
            event[key] = _redact_value(value)
    return event


def _redact_value(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {_redact_value(key): _redact_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_redact_value(item) for item in value]
    return redact(str(value))


def _log_crash(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Log an exception that nothing catches, instead of Python's own report with its passwords."""
    import structlog

    if not issubclass(kind, SystemExit | KeyboardInterrupt):
        structlog.get_logger(__name__).critical("crashed", exc_info=(kind, error, trace))
