"""Start streams that are attached, but that no job runs."""

import math

import structlog

from streamer.clock import Clock
from streamer.domain.stream import Stream, StreamState
from streamer.queues.jobs import Jobs
from streamer.sources.streams import StreamRegistry

_INTERVAL = 60.0
"""Seconds between two looks."""

_log = structlog.get_logger(__name__)


class LostStreams:
    """Finds the streams whose job is gone, and starts them again.

    A program that is killed while it attaches a stream, a server that loses a job and a job that
    was given up leave such a stream. Looking twice, or beside another worker, does no harm.
    """

    def __init__(self, registry: StreamRegistry, jobs: Jobs, clock: Clock) -> None:
        self._registry = registry
        self._jobs = jobs
        self._clock = clock
        self._looked_at = -math.inf

    def sweep(self) -> None:
        """Look, if it is time. Call it often."""
        now = self._clock.monotonic()
        if now - self._looked_at < _INTERVAL:
            return
        self._looked_at = now
        wanted = [stream.id for stream in self._registry.list() if _is_to_run(stream)]
        for stream_id in self._jobs.restart_lost(wanted):
            _log.warning("stream_started_again", stream=stream_id, reason="no job ran it")


def _is_to_run(stream: Stream) -> bool:
    if stream.state is StreamState.UNREADABLE:  # a worker of a newer release may run it
        return False
    return stream.live or stream.state not in (StreamState.ENDED, StreamState.FAILED)
