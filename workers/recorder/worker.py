"""The recorder: write the results queue into the timeline (`python -m workers.recorder`)."""

import json
import math
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, cast

import redis
import structlog
from sqlalchemy import Connection

from streamer import redis_keys, tracing
from streamer.clock import Clock, SystemClock
from streamer.domain.part import PartName
from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.file_pages import release_when_idle
from streamer.frames.store import FrameStore, Retention
from streamer.health.parts import note_seen
from streamer.incidents.keeper import pictures_of
from streamer.incidents.store import Incidents
from streamer.logging_setup import log_ready
from streamer.queues.results import read_entry
from streamer.redis_client.connections import Connections, log_lacks
from streamer.redis_client.errors import will_pass
from streamer.redis_client.memory_reserve import in_reserve
from streamer.redis_client.outage import Outage
from streamer.redis_client.record_version import join_records
from streamer.secret_box import SecretBox
from streamer.settings import Settings
from streamer.sources.streams import StreamRegistry
from streamer.timeline.expiry import ResultExpiry
from streamer.timeline.results import Timeline
from workers.process import startup
from workers.process.process_stats import read_process_stats
from workers.recorder.incidents import channels_of, incident_thread
from workers.recorder.vectors import vector_thread
from workers.recorder.webhooks import webhook_sender_of

_log = structlog.get_logger(__name__)

_GROUP = redis_keys.RECORDER_GROUP
_BATCH = 256
_MAX_REMEMBERED = 10_000
_BLOCK_MS = 1000
_GRACE = 4.0
"""Seconds for which messages that are being sent are waited for at the end."""


class Recorder:
    """Moves results from the queue to the timeline, and acknowledges each once it is committed.

    A result that this release cannot read or store is not acknowledged: it stays in the queue for a
    newer recorder, which takes it over.

    Args:
        client: the Redis server of the results queue.
        timeline: the database.
        stopping: set when the recorder is to end.
        claim_after: seconds after which results are taken over that another recorder has not
            acknowledged.
        outage: what Redis refuses at the moment.
        lease: seconds of silence after which recorders count as missing.
        clock: the time; a test moves it by hand.
        incidents: counts the windows of alerts; without them nothing is counted.
        frames: where the pictures of incidents are.
        on_incident: called after a result has changed an incident.
        expiry: deletes old results; without it all are kept.
        database_outage: what the database refuses at the moment.
    """

    def __init__(
        self,
        client: redis.Redis,
        timeline: Timeline,
        *,
        stopping: threading.Event,
        claim_after: float = 30.0,
        outage: Outage | None = None,
        lease: float = 12.0,
        clock: Clock | None = None,
        incidents: Incidents | None = None,
        frames: FrameStore | None = None,
        on_incident: Callable[[], None] = lambda: None,
        expiry: ResultExpiry | None = None,
        database_outage: Outage | None = None,
    ) -> None:
        self._expiry = expiry
        self._redis = in_reserve(client)
        self._incidents = incidents
        self._frames = frames
        self._on_incident = on_incident
        self._timeline = timeline
        self._stopping = stopping
        self._claim_after = claim_after
        self._outage = outage or Outage(client=client)
        self._database = database_outage or Outage("timeline")
        self._clock = clock or SystemClock()
        self._claimed_at = float("-inf")
        self._claim_from: Any = "0-0"
        self._left: dict[bytes, None] = {}
        self.left_count = 0
        """Results that were left in the queue because they cannot be read or stored."""
        self._lease = lease
        self._beat_at = float("-inf")
        self._trouble: str | None = None
        self._name = f"recorder-{socket.gethostname()}-{os.getpid()}"

    def run(self) -> None:
        """Record until `stopping` is set; wait while Redis or the database refuses work."""
        joined = False
        pauses = self._outage.pauses()
        while not self._stopping.is_set():
            try:
                if not joined:
                    self.join()
                    joined = True
                self.beat()
                self.step()
                if self._expiry is not None:
                    self._expiry.step()
            except StreamerError as error:
                self._database.failed("record", error)
                self._trouble, self._beat_at = str(error), float("-inf")
            except redis.exceptions.RedisError as error:
                if str(error).startswith("NOGROUP"):
                    joined = False  # the server has lost its data
                    continue
                if not will_pass(error):
                    raise
                self._outage.failed("record", error)
            else:
                self._outage.worked("record")
                self._database.worked("record")
                self._trouble = None
                pauses = self._outage.pauses()
                continue
            self._stopping.wait(next(pauses))
            self._claimed_at = float("-inf")  # claim again what is held unrecorded
            self._claim_from = "0-0"

    def join(self) -> None:
        """Create the group, from the oldest result on, so that none is missed."""
        try:
            self._redis.xgroup_create(redis_keys.RESULTS, _GROUP, id="0", mkstream=True)
        except redis.exceptions.ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    def beat(self) -> None:
        """Report, three times in each lease, that a recorder runs, whether it can record, and what
        this process uses."""
        now = self._clock.monotonic()
        if now - self._beat_at < self._lease / 3:
            return
        self._beat_at = now
        trouble = self._trouble  # of the last attempt to record
        try:
            self._timeline.ping()
        except StreamerError as error:
            trouble = str(error)
        beat = json.dumps({"trouble": trouble, "unreadable": self.left_count})
        ttl = max(1, math.ceil(2 * self._lease))
        stats_key = redis_keys.worker(self._name)
        with self._redis.pipeline() as pipeline:
            pipeline.set(redis_keys.RECORDER, beat, ex=ttl)
            pipeline.hset(stats_key, mapping=cast("dict[Any, Any]", read_process_stats()))
            pipeline.expire(stats_key, ttl)
            pipeline.execute()
        working: list[PartName] = ["recorder"] if trouble else ["recorder", "database"]
        note_seen(self._redis, working, self._clock.time())

    def step(self) -> int:
        """Record one batch, waiting about a second for it. Return how many results were new."""
        claimed = self._claim()
        entries = claimed + self._read(None if claimed else _BLOCK_MS)
        if not entries:
            return 0
        results: dict[bytes, Result] = {}
        for entry_id, fields in entries:
            try:
                results[entry_id] = read_entry(fields)
            except StreamerError as error:
                self._leave(entry_id, error)
        recorded = self._record(results)
        if results:
            self._redis.xack(redis_keys.RESULTS, _GROUP, *results)
        _log.debug("recorded", results=recorded)
        return recorded

    def _record(self, results: dict[bytes, Result]) -> int:
        """Store results, and take those out of `results` that the database refuses."""
        try:
            with tracing.recording(results.values()):
                return self._store(list(results.values()))
        except StreamerError as error:
            if error.code is not ErrorCode.RECORD_UNREADABLE:
                raise
        recorded = 0
        for entry_id, result in list(results.items()):
            try:
                recorded += self._store([result])
            except StreamerError as error:
                if error.code is not ErrorCode.RECORD_UNREADABLE:
                    raise
                self._leave(entry_id, error)
                del results[entry_id]
        return recorded

    def _store(self, results: list[Result]) -> int:
        """Store results and count the windows of alerts, in one transaction.

        What the model said about the hits of a search is left out.
        """
        results = [result for result in results if not result.verifies]
        incidents = self._incidents
        if incidents is None:
            return self._timeline.record(results)
        pictures = {} if self._frames is None else pictures_of(results, self._frames)
        changed = False

        def count(connection: Connection, new: list[Result]) -> None:
            nonlocal changed
            changed = incidents.count(connection, new, pictures)

        recorded = self._timeline.record(results, also=count)
        if changed:
            self._on_incident()
        return recorded

    def _leave(self, entry_id: bytes, error: StreamerError) -> None:
        """Leave a result in the queue; count and log it when it is seen for the first time."""
        if entry_id in self._left:
            return
        self.left_count += 1
        self._left[entry_id] = None
        if len(self._left) > _MAX_REMEMBERED:
            del self._left[next(iter(self._left))]
        _log.error("result_left_in_queue", id=entry_id.decode(), reason=error.message)

    def leave(self) -> None:
        """Leave the group, unless this recorder holds results that it could not record; report
        nothing more."""
        self._redis.delete(redis_keys.worker(self._name))
        consumers = cast(list[Any], self._redis.xinfo_consumers(redis_keys.RESULTS, _GROUP))
        for consumer in consumers:
            if consumer["name"] == self._name.encode() and consumer["pending"] == 0:
                self._redis.xgroup_delconsumer(redis_keys.RESULTS, _GROUP, self._name)

    def _read(self, block: int | None) -> list[Any]:
        answer = self._redis.xreadgroup(
            _GROUP, self._name, {redis_keys.RESULTS: ">"}, count=_BATCH, block=block
        )
        return cast(list[Any], answer)[0][1] if answer else []

    def _claim(self) -> list[Any]:
        """Take over entries that any recorder took and never acknowledged."""
        if self._clock.monotonic() - self._claimed_at < self._claim_after:
            return []
        answer = self._redis.xautoclaim(
            redis_keys.RESULTS,
            _GROUP,
            self._name,
            min_idle_time=round(self._claim_after * 1000),
            start_id=self._claim_from,
            count=_BATCH,
        )
        self._claim_from, entries = answer[0], answer[1]
        if self._claim_from == b"0-0":  # all that is pending has been looked through
            self._claimed_at = self._clock.monotonic()
        return [(entry_id, fields) for entry_id, fields in entries if fields]


def record_results(settings: Settings, stopping: threading.Event) -> None:
    """Record until `stopping` is set. Raises StreamerError if Redis or the database is away."""
    timeline = Timeline(settings.timeline_url, upgrade=True)
    try:
        channels = channels_of(settings)
        incidents = Incidents(timeline.database, list(channels))
        with Connections(settings, patient=True) as connections:
            join_records(connections.main)
            log_lacks(connections)
            clock = connections.clock
            database_outage = Outage("timeline")
            thread = incident_thread(
                settings, connections, timeline, incidents, channels, stopping, clock
            )
            recorder = Recorder(
                connections.main,
                timeline,
                stopping=stopping,
                claim_after=2 * settings.lease,
                outage=connections.outage,
                database_outage=database_outage,
                lease=settings.lease,
                clock=clock,
                incidents=incidents,
                frames=FrameStore(connections.frames, Retention.of(settings), clock=clock),
                on_incident=thread.wake.set,
                expiry=ResultExpiry(
                    timeline.database,
                    clock,
                    days=settings.retention_days,
                    max_bytes=settings.retention_bytes,
                    days_of_streams=StreamRegistry(
                        connections.main, SecretBox(settings.secret_key)
                    ).retention_days,
                ),
            )
            startup.stop_on_signals(stopping)
            connections.outage.insist("record", recorder.join, stopping.wait)
            webhook_sender = webhook_sender_of(
                settings, connections, timeline.database, database_outage, stopping
            )
            webhook_sender.start()
            vectors = vector_thread(connections, timeline.database, stopping)
            log_ready()
            release_when_idle()
            thread.start()
            vectors.start()
            try:
                recorder.run()
            finally:
                stopping.set()
                thread.end()
                webhook_sender.join(_GRACE)
                vectors.join(_GRACE)
            recorder.leave()
    except redis.exceptions.RedisError as error:
        if not (stopping.is_set() and will_pass(error)):
            raise
    finally:
        timeline.close()
