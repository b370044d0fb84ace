"""Look up the specs of all streams of a worker together, and save their statuses together."""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

import redis

from streamer.clock import Clock
from streamer.domain.stream import StreamSpec, StreamStatus
from streamer.errors import StreamerError, Superseded
from streamer.sources.streams import StreamRegistry

_LOOK_INTERVAL = 1.0
"""Seconds between two looks at the specs, unless an edit is announced."""

_MAX_AGE = 2.0
"""Seconds for which the specs of a look may be used while Redis does not answer the next one."""

_SAVE_INTERVAL = 0.98
"""Seconds between two batches of statuses: a little less than each stream waits between two."""


@dataclass
class _Known:
    """What a look found of one stream, if there was one: its record, and what was read from it."""

    looked: bool = False
    record: bytes | None = None
    spec: StreamSpec | StreamerError | None = None


class RegistryBatch:
    """Asks the registry once for all streams that a process runs, instead of once for each.

    The first thread that finds a look or a batch due sends it for all; the others do not wait for
    it. A worker with a hundred streams sends no more commands than one with one.
    """

    def __init__(self, registry: StreamRegistry, clock: Clock) -> None:
        self._registry = registry
        self._clock = clock
        self._changed = threading.Condition()
        self._known: dict[str, _Known] = {}
        self._looking = False
        self._looked_at = -math.inf  # when the newest look that was answered began
        self._edited = False  # whether a stream was edited since the newest look began
        self._posted: dict[str, tuple[StreamStatus, int | None]] = {}
        self._saving: Mapping[str, object] = {}
        self._saved_at = -math.inf
        self._refused: dict[str, int | None] = {}

    def find(self, stream_id: str, *, fresh: bool = False) -> StreamSpec | None:
        """Return the spec of a stream, no older than about a second, or `fresh`; None if it is not
        attached.

        Raises StreamerError(RECORD_UNREADABLE), redis.exceptions.RedisError.
        """
        if fresh:
            return self._registry.find(stream_id)
        now = self._clock.monotonic()
        with self._changed:
            known = self._known.setdefault(stream_id, _Known())
            age = now - self._looked_at
            due = age >= _LOOK_INTERVAL or self._edited
            if known.looked and (self._looking or not due):
                if age > _MAX_AGE:
                    raise redis.exceptions.TimeoutError("Redis does not answer")
                return _read(known)
            ids = list(self._known)
            self._looking, self._edited = True, False
        try:
            records = self._registry.records(ids)
        finally:
            with self._changed:
                self._looking = False
        with self._changed:
            self._looked_at = max(self._looked_at, now)
            for each, record in zip(ids, records, strict=True):
                if (entry := self._known.get(each)) is not None:
                    _note(entry, record)
        return _read(known)

    def note_edit(self, stream_id: str) -> None:
        """Have the next :meth:`find` look, if the stream is one of this process."""
        with self._changed:
            self._edited = self._edited or stream_id in self._known

    def post(self, stream_id: str, status: StreamStatus, token: int | None) -> None:
        """Save a status with the next batch, within about a second.

        Raises Superseded if an earlier status was refused because another worker runs the stream;
        redis.exceptions.RedisError.
        """
        now = self._clock.monotonic()
        with self._changed:
            if stream_id in self._refused and self._refused.pop(stream_id) == token:
                raise Superseded
            self._posted[stream_id] = (status.model_copy(deep=True), token)
            if self._saving or now - self._saved_at < _SAVE_INTERVAL:
                return
            self._saved_at = now
            batch, self._posted = self._posted, {}
            self._saving = batch
        refused: list[str] = []
        try:
            refused = self._registry.save_statuses(batch)
        finally:
            with self._changed:
                self._saving = {}
                self._refused.update({each: batch[each][1] for each in refused})
                self._changed.notify_all()
        if stream_id in refused:
            raise Superseded

    def save(self, stream_id: str, status: StreamStatus, token: int | None) -> None:
        """Save a status now, after those that were posted before. Raises Superseded,
        redis.exceptions.RedisError."""
        with self._changed:
            self._posted.pop(stream_id, None)
            while stream_id in self._saving:
                self._changed.wait()
        self._registry.save_status(stream_id, status, token)

    def leave(self, stream_id: str) -> None:
        """Forget a stream that this process runs no more."""
        with self._changed:
            for known in (self._known, self._posted, self._refused):
                known.pop(stream_id, None)


def _note(known: _Known, record: bytes | None) -> None:
    """Note the record of a stream; read it only if it has changed."""
    if record is not None and record == known.record:
        return
    known.looked, known.record = True, record
    try:
        known.spec = StreamSpec.read(record) if record is not None else None
    except StreamerError as error:
        known.spec = error


def _read(known: _Known) -> StreamSpec | None:
    if isinstance(known.spec, StreamerError):
        raise StreamerError(known.spec.code, known.spec.message)
    return known.spec
