"""Bound the results queue, and tell how far the recorder is behind.

A result leaves the queue once the recorder has acknowledged it. What is not recorded stays, up to
`results_max_bytes`; what must be given up beyond that is counted.
"""

from dataclasses import dataclass
from typing import Any, cast

import redis

from streamer import redis_keys
from streamer.redis_client.memory_reserve import RESULT_GROUPS

_BATCH = 32
"""Results by which the queue may be too long: it is not trimmed for each new one."""

_MOST = 64
"""Results that are deleted at once."""

BOUND_RESULTS = (
    RESULT_GROUPS
    + f"""
local function is_after(id, other)
  local ms, seq = string.match(id, '(%d+)-(%d+)')
  local other_ms, other_seq = string.match(other, '(%d+)-(%d+)')
  if ms == other_ms then return tonumber(seq) > tonumber(other_seq) end
  return tonumber(ms) > tonumber(other_ms)
end

-- Deletes the oldest results beyond a length, if the recorder has acknowledged them, and beyond a
-- number of bytes in any case. Counts those that are lost so.
local function bound_results(max_length, max_bytes)
  local queue, group = '{redis_keys.RESULTS}', '{redis_keys.RECORDER_GROUP}'
  local length, bytes = redis.call('XLEN', queue), redis.call('MEMORY', 'USAGE', queue) or 0
  local full, most = bytes > max_bytes, length - max_length
  if most < {_BATCH} and not full then return end
  if full then most = math.max(most, math.ceil(length * (bytes - max_bytes) / bytes)) end
  local delivered, gone, lost = result_groups()[group], {{}}, 0
  if not delivered and not full then return end
  -- Without a recorder for a while, nothing up to what it was given last is left to look at.
  local last = full and '+' or delivered
  local oldest = redis.call('XRANGE', queue, '-', last, 'COUNT', math.min(most, {_MOST}))
  for _, entry in ipairs(oldest) do
    local id = entry[1]
    local recorded = delivered and not is_after(id, delivered)
      and #redis.call('XPENDING', queue, group, id, id, 1) == 0
    if recorded or full then gone[#gone + 1] = id end
    if full and not recorded then lost = lost + 1 end
  end
  if #gone > 0 then redis.call('XDEL', queue, unpack(gone)) end
  if lost > 0 then
    redis.call('HINCRBY', '{redis_keys.RESULTS_LOST}', 'count', lost)
    redis.call('HSET', '{redis_keys.RESULTS_LOST}', 'last', redis.call('TIME')[1])
  end
end
"""
)
"""Lua: how a script that publishes a result bounds the queue."""


def recorders(client: redis.Redis) -> list[str]:
    """Return the names of the recorders that share the queue, those that were killed among them.

    Raises redis.exceptions.RedisError.
    """
    try:
        found = client.xinfo_consumers(redis_keys.RESULTS, redis_keys.RECORDER_GROUP)
    except redis.exceptions.ResponseError as error:
        if str(error).startswith(("no such key", "NOGROUP")):  # there was no recorder yet
            return []
        raise
    return [consumer["name"].decode() for consumer in found]


@dataclass(frozen=True)
class Backlog:
    """What the recorder has not recorded.

    Attributes:
        results: how many results; None if the server (before Redis 7) does not count them.
        oldest: when the oldest of them was published, epoch seconds; None if there is none.
        lost: how many were given up since the installation began.
        lost_at: when the last of those was given up, epoch seconds.
    """

    results: int | None
    oldest: float | None
    lost: int
    lost_at: float | None


def read_backlog(client: redis.Redis) -> Backlog:
    """Read how far the recorder is behind. Raises redis.exceptions.RedisError."""
    lost = cast("dict[bytes, bytes]", client.hgetall(redis_keys.RESULTS_LOST))
    results, oldest = _unrecorded(client)
    return Backlog(
        results=results,
        oldest=None if oldest is None else int(oldest.partition(b"-")[0]) / 1000,
        lost=int(lost.get(b"count", 0)),
        lost_at=float(lost[b"last"]) if b"last" in lost else None,
    )


def _unrecorded(client: redis.Redis) -> tuple[int | None, bytes | None]:
    """Return how many results are not acknowledged, and the id of the oldest."""
    queue, name = redis_keys.RESULTS, redis_keys.RECORDER_GROUP
    if not client.exists(queue):
        return 0, None
    groups = client.xinfo_groups(queue)
    group = next((each for each in groups if each["name"] == name.encode()), None)
    if group is None:  # there was no recorder yet
        first = cast("list[Any]", client.xrange(queue, count=1))
        return client.xlen(queue), first[0][0] if first else None
    delivered = cast(bytes, group["last-delivered-id"])
    waiting = cast("list[Any]", client.xrange(queue, min=b"(" + delivered, count=1))
    pending, lag = int(group["pending"]), group.get("lag")
    if not waiting:
        lag = 0
    results = None if lag is None else int(lag) + pending
    if pending:
        held = client.xpending(queue, name)
        return results, held["min"]
    return results, waiting[0][0] if waiting else None
