"""Run one stream: the job of an ingest slot."""

import redis
import structlog

from workers import context
from workers.ingest.live_run import LiveRun
from workers.ingest.recording_run import RecordingRun
from workers.process import malloc

_log = structlog.get_logger(__name__)


def run_stream(stream_id: str) -> None:
    """Run one stream until it is detached or ends.

    Raises GiveBack when the worker stops first.
    """
    own = context.current()
    try:
        spec = own.streams.find(stream_id)
        if spec is not None:
            kind = LiveRun if spec.live else RecordingRun
            kind(own, spec, stop=context.stop_check()).run()
    except redis.exceptions.RedisError as error:
        _log.warning("redis_away", stream=stream_id, reason=type(error).__name__)
        own.stopping.wait(1.0)
        raise context.GiveBack from None
    finally:
        malloc.trim()
