"""The recorder: write the results queue into the timeline (`python -m workers.recorder`)."""

import os
import socket
import sys
import threading
from typing import Any, cast

import redis
import structlog

from streamer import redis_keys
from streamer.clock import Clock, SystemClock
from streamer.connections import Connections
from streamer.domain import Result
from streamer.errors import StreamerError
from streamer.results import parse_entries
from streamer.settings import Settings
from streamer.timeline import Timeline
from workers.process import startup

_log = structlog.get_logger(__name__)

GROUP = "recorder"
"""The consumer group, in which any number of recorders share the work."""

_BATCH = 256
_BLOCK_MS = 1000
_PAUSE = 2.0  # seconds before a database or a Redis that failed is tried again


class Recorder:
    """Moves results from the queue to the timeline, and acknowledges each once it is committed.

    Args:
        client: the Redis server of the results queue.
        timeline: the database.
        stopping: set when the recorder is to end.
        claim_after: seconds after which results are taken over that another recorder has not
            acknowledged.
        clock: the time; a test moves it by hand.
    """

    def __init__(
        self,
        client: redis.Redis,
        timeline: Timeline,
        *,
        stopping: threading.Event,
        claim_after: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        self._redis = client
        self._timeline = timeline
        self._stopping = stopping
        self._claim_after = claim_after
        self._clock = clock or SystemClock()
        self._claimed_at = float("-inf")
        self._name = f"{socket.gethostname()}-{os.getpid()}"

    def run(self) -> None:
        """Record until `stopping` is set."""
        self.join()
        while not self._stopping.is_set():
            try:
                self.step()
            except redis.exceptions.ResponseError as error:
                if not str(error).startswith("NOGROUP"):
                    raise
                self.join()  # the server has lost its data
            except (redis.exceptions.RedisError, StreamerError) as error:
                _log.warning("recording_delayed", reason=str(error))
                self._stopping.wait(_PAUSE)
                self._claimed_at = float("-inf")  # claim again what is held unrecorded

    def join(self) -> None:
        """Create the group, from the oldest result on, so that none is missed."""
        try:
            self._redis.xgroup_create(redis_keys.RESULTS, GROUP, id="0", mkstream=True)
        except redis.exceptions.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def step(self) -> int:
        """Record one batch, waiting about a second for it. Return how many results were new."""
        entries = self._claim() or self._read()
        if not entries:
            return 0
        results: list[Result] = [result for _, result in parse_entries(entries)]
        recorded = self._timeline.record(results)
        self._redis.xack(redis_keys.RESULTS, GROUP, *(entry_id for entry_id, _ in entries))
        _log.debug("recorded", results=recorded)
        return recorded

    def leave(self) -> None:
        """Leave the group, unless this recorder holds results that it could not record."""
        consumers = cast(list[Any], self._redis.xinfo_consumers(redis_keys.RESULTS, GROUP))
        for consumer in consumers:
            if consumer["name"] == self._name.encode() and consumer["pending"] == 0:
                self._redis.xgroup_delconsumer(redis_keys.RESULTS, GROUP, self._name)

    def _read(self) -> list[Any]:
        answer = self._redis.xreadgroup(
            GROUP, self._name, {redis_keys.RESULTS: ">"}, count=_BATCH, block=_BLOCK_MS
        )
        return cast(list[Any], answer)[0][1] if answer else []

    def _claim(self) -> list[Any]:
        """Take over entries that any recorder took and never acknowledged."""
        if self._clock.monotonic() - self._claimed_at < self._claim_after:
            return []
        answer = self._redis.xautoclaim(
            redis_keys.RESULTS,
            GROUP,
            self._name,
            min_idle_time=round(self._claim_after * 1000),
            count=_BATCH,
        )
        entries = answer[1]
        if len(entries) < _BATCH:
            self._claimed_at = self._clock.monotonic()
        return [(entry_id, fields) for entry_id, fields in entries if fields]


def record_results(settings: Settings, stopping: threading.Event) -> None:
    """Record until `stopping` is set. Raises StreamerError if Redis or the database is away."""
    timeline = Timeline(settings.timeline_url)
    try:
        with Connections(settings) as connections:
            recorder = Recorder(
                connections.main, timeline, stopping=stopping, claim_after=2 * settings.lease
            )
            recorder.join()
            startup.stop_on_signals(stopping)
            _log.info("ready")
            recorder.run()
            recorder.leave()
    finally:
        timeline.close()


if __name__ == "__main__":
    sys.exit(startup.run_program(record_results))
