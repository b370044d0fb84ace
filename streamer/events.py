"""Publish and read events: one bounded stream of facts, in the order in which they happened.

Events are bookkeeping: a server without room for them gives them up, and notes that it did so that
readers know of the gap.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any, cast

import redis

from streamer import redis_keys
from streamer.domain.timestamp import rfc3339, to_datetime
from streamer.errors import ErrorCode, StreamerError
from streamer.redis_client.memory_reserve import TAKE_ROOM

MAX_EVENTS = 10_000
"""Events that are kept, approximately."""

MAX_AGE = 86_400
"""Seconds for which events are kept, approximately."""

_LOST = "lost"
"""Type of an entry that stands for events that were given up."""


class EventType(StrEnum):
    """What happened."""

    RESULT_CREATED = "result.created"
    QUERY_FINISHED = "query.finished"
    STREAM_STATE_CHANGED = "stream.state_changed"
    WORKER_STATE_CHANGED = "worker.state_changed"
    INCIDENT_OPENED = "incident.opened"
    INCIDENT_UPDATED = "incident.updated"
    INCIDENT_RESOLVED = "incident.resolved"
    INCIDENT_ACKNOWLEDGED = "incident.acknowledged"


TYPE_PATTERN = "|".join(
    [
        *(re.escape(each.value) for each in EventType),
        *sorted({rf"{each.partition('.')[0]}\.\*" for each in EventType}),
    ]
)
"""Regular expression of what a filter may name: a type of event, or all that begin alike."""

# XTRIM deletes, so a full server lets the script write on:
# see streamer/redis_client/memory_reserve.py.
PUBLISH_EVENT = (
    TAKE_ROOM
    + f"""
-- Adds an event. `data` is a JSON object; stream and name are '' for an event of no stream.
local function publish_event(type, stream, name, data)
  local events, oldest = '{redis_keys.EVENTS}', redis.call('TIME')[1] - {MAX_AGE}
  redis.call('XTRIM', events, 'MAXLEN', '~', {MAX_EVENTS})
  redis.call('XTRIM', events, 'MINID', '~', string.format('%d000', oldest))
  if not take_room(#data, 0) then
    redis.call('INCR', '{redis_keys.EVENTS_LOST}')
    local last = redis.call('XREVRANGE', events, '+', '-', 'COUNT', 1)[1]
    if not last or last[2][2] ~= '{_LOST}' then
      redis.call('XADD', events, '*', 'type', '{_LOST}')
    end
    return false
  end
  local id = redis.call('XADD', events, '*', 'type', type, 'stream', stream, 'name', name,
                        'data', data)
  redis.call('EXPIRE', events, {MAX_AGE})
  return id
end
"""
)
"""Lua: how a script that writes a fact announces it in the same step."""

# KEYS: events. ARGV: type, stream id, stream name, data
_PUBLISH = PUBLISH_EVENT + "return publish_event(ARGV[1], ARGV[2], ARGV[3], ARGV[4])"

# KEYS: events. Begins the stream if there is none, so that there is a position to go on from.
_POSITION = f"""
local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if newest then return newest[1] end
if redis.call('EXISTS', KEYS[1]) == 1 then
  local info = redis.call('XINFO', 'STREAM', KEYS[1])
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end
local id = redis.call('XADD', KEYS[1], '*', 'type', '{_LOST}')
redis.call('EXPIRE', KEYS[1], {MAX_AGE})
return id
"""


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        id: its place among all events: milliseconds since the Unix epoch, `-`, a number.
        type: an :class:`EventType`, or a word that only a newer release knows.
        stream_id, stream_name: the stream that it is about; None for an event of no stream.
        data: what happened, a JSON object as text.
    """

    id: str
    type: str
    stream_id: str | None
    stream_name: str | None
    data: str

    @property
    def lost(self) -> bool:
        """Whether this stands for events that a full server has given up."""
        return self.type == _LOST

    @property
    def time(self) -> str:
        """When it was published, in RFC 3339."""
        return rfc3339(to_datetime(int(self.id.partition("-")[0]) / 1000))

    @cached_property
    def json(self) -> str:
        """The event as JSON: `id, type, time, stream_id, stream_name, data`."""
        head = {
            "id": self.id,
            "type": self.type,
            "time": self.time,
            "stream_id": self.stream_id,
            "stream_name": self.stream_name,
        }
        return f'{json.dumps(head)[:-1]}, "data": {self.data}}}'


@dataclass(frozen=True)
class EventFilter:
    """Which events a listener wants; None: all.

    Attributes:
        streams: ids and names of streams; events of no stream are left out then.
        types: types of events; one that ends in `*` stands for all that begin so.
    """

    streams: frozenset[str] | None = None
    types: tuple[str, ...] | None = None

    @classmethod
    def of(cls, streams: Sequence[str] | None, types: Sequence[str] | None) -> "EventFilter":
        """Return the filter of a request. Raises StreamerError(INVALID_REQUEST)."""
        for word in types or ():
            if not any(_matches(word, known) for known in EventType):
                raise StreamerError(
                    ErrorCode.INVALID_REQUEST,
                    f"'{word[:80]}' is not a type of event: write {', '.join(EventType)}, or "
                    "several as in incident.*.",
                )
        return cls(
            frozenset(streams) if streams is not None else None,
            tuple(types) if types is not None else None,
        )

    def __call__(self, event: Event) -> bool:
        """Return whether the listener wants `event`."""
        return self.matches(event.type, event.stream_id, event.stream_name)

    def matches(self, type: str, stream_id: str | None, stream_name: str | None) -> bool:
        """Return whether the listener wants an event of this type and stream."""
        if self.streams is not None and not self.streams & {stream_id, stream_name}:
            return False
        return self.types is None or any(_matches(word, type) for word in self.types)


def _matches(word: str, type: str) -> bool:
    return type.startswith(word[:-1]) if word.endswith("*") else type == word


def is_position(text: str) -> bool:
    """Return whether `text` has the form of an event's id."""
    milliseconds, _, number = text.partition("-")
    parts = (milliseconds, number) if "-" in text else (milliseconds,)
    return all(part.isascii() and part.isdigit() and len(part) <= 19 for part in parts)


def event_order(event_id: str) -> tuple[int, int]:
    """Return an event's id as numbers, which compare as the events' order."""
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number or 0)


def _before(event_id: str) -> str:
    milliseconds, number = event_order(event_id)
    return f"{milliseconds}-{number - 1}" if number else f"{milliseconds - 1}-{2**64 - 1}"


class Events:
    """The events of an installation: the newest `MAX_EVENTS`, for `MAX_AGE` seconds."""

    def __init__(self, redis: redis.Redis) -> None:
        self._redis = redis
        self._publish = redis.register_script(_PUBLISH)
        self._position = redis.register_script(_POSITION)

    def publish(
        self,
        type: EventType,
        data: Mapping[str, Any],
        *,
        stream_id: str | None = None,
        stream_name: str | None = None,
    ) -> str | None:
        """Publish an event; return its id, or None if a full server has given it up.

        `data` is what JSON can hold. Raises redis.exceptions.RedisError.
        """
        event_id = self._publish(
            keys=[redis_keys.EVENTS],
            args=[type.value, stream_id or "", stream_name or "", json.dumps(data)],
        )
        return cast(bytes, event_id).decode() if event_id else None

    def position(self) -> str:
        """Return the id after which the next event will come."""
        return cast(bytes, self._position(keys=[redis_keys.EVENTS])).decode()

    def oldest(self) -> str | None:
        """Return the id of the oldest event that is kept; None if none is."""
        entries = cast(list[Any], self._redis.xrange(redis_keys.EVENTS, count=1))
        return entries[0][0].decode() if entries else None

    def kept_since(self, after: str) -> bool:
        """Return whether every event after the id `after` is kept."""
        oldest = self.oldest()
        if oldest is not None and event_order(oldest) <= event_order(after):
            return True
        return self.position() == after  # no event has come since

    def gap_after(self, after: str) -> list[Event]:
        """Return an event that stands for those after `after` that are lost; none if none are."""
        if self.kept_since(after):
            return []
        oldest = self.oldest()
        return [Event(_before(oldest) if oldest else after, _LOST, None, None, "{}")]

    def read(self, after: str, block: float | None = None, count: int = 256) -> list[Event]:
        """Return events after the id `after`, oldest first; wait up to `block` seconds for one."""
        return self.read_beside(after, {}, block, count)[0]

    def read_beside(
        self, after: str, others: Mapping[str, str], block: float | None, count: int = 256
    ) -> tuple[list[Event], dict[str, str]]:
        """Like :meth:`read`, and wait for other streams too: in the same command.

        `others` has the key of each, with the id after which something is new. Return the events,
        and the newest id of each that has something new.
        """
        positions: dict[Any, Any] = {redis_keys.EVENTS: after, **others}
        answer = self._redis.xread(
            positions,
            count=count,
            block=max(1, round(block * 1000)) if block else None,
        )
        found = {key.decode(): entries for key, entries in cast(list[Any], answer or [])}
        events = [_event(*entry) for entry in found.pop(redis_keys.EVENTS, [])]
        return events, {key: entries[-1][0].decode() for key, entries in found.items()}

    def lost(self) -> int:
        """Return how many events a full server has given up."""
        return int(cast(bytes | None, self._redis.get(redis_keys.EVENTS_LOST)) or 0)


def _event(entry_id: bytes, fields: dict[bytes, bytes]) -> Event:
    return Event(
        id=entry_id.decode(),
        type=fields.get(b"type", b"").decode(),
        stream_id=fields.get(b"stream", b"").decode() or None,
        stream_name=fields.get(b"name", b"").decode() or None,
        data=fields.get(b"data", b"{}").decode(),
    )
