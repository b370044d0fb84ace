"""What ends a stream's connection and is not the source's fault, in a sentence each."""

import redis
import structlog

from streamer.errors import ErrorCode, StreamerError

_log = structlog.get_logger(__name__)


def redis_away(error: redis.exceptions.RedisError) -> StreamerError:
    """Redis failed while the stream was opened."""
    return StreamerError(
        ErrorCode.REDIS_UNAVAILABLE,
        f"Redis does not answer ({type(error).__name__}): check that it runs.",
    )


def unexpected(error: Exception, stream: str) -> StreamerError:
    """Something that should not happen; the log has its traceback. Call it while handling it."""
    _log.exception("stream_crashed", stream=stream)
    return StreamerError(
        ErrorCode.INTERNAL,
        f"Unexpected {type(error).__name__}: see the ingest worker's log, and report it.",
    )
