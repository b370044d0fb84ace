"""Failures that end a stream's connection and are not the source's fault, a sentence each."""

import structlog

from streamer.errors import ErrorCode, StreamerError

_log = structlog.get_logger(__name__)


def unexpected(error: Exception, stream: str) -> StreamerError:
    """Log the exception that is being handled, and return the error of its stream."""
    _log.exception("stream_crashed", stream=stream)
    return StreamerError(
        ErrorCode.INTERNAL,
        f"Unexpected {type(error).__name__}: see the log of the ingest worker, and report it.",
    )
