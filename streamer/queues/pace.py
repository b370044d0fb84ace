"""Measure how fast jobs leave a queue, and how long one that waits there is expected to.

Model workers note each job that they take. The time between two takes counts while other jobs
waited in between: so it is what the workers can do, not how often clients ask.
"""

from typing import Any, cast

import redis
from rq import Queue

from streamer import redis_keys

_WINDOW = 30
"""Seconds of waiting after which older takes count half."""

_MAX_GAP = 60
"""Seconds between two takes, at most, that are counted: after that no worker was there."""

_TTL = 60
"""Seconds after the last take for which the pace of a queue is known."""

_KNOWN_AFTER = 1.0
"""Seconds of waiting after which the pace is known: the first jobs only fill the workers' slots."""

EXPECTED_WAIT = f"""
-- Returns how many jobs wait in a queue, and how many seconds the last of them is expected to wait:
-- nil if the pace is not known.
local function expected_wait(queue)
  local waiting = redis.call('LLEN', queue)
  local name = string.sub(queue, {len(Queue.redis_queue_namespace_prefix) + 1})
  local pace = redis.call('HMGET', '{redis_keys.pace("")}' .. name, 'taken', 'seconds')
  local taken, seconds = tonumber(pace[1] or '0'), tonumber(pace[2] or '0')
  if taken == 0 or seconds < {_KNOWN_AFTER} then return waiting, nil end
  return waiting, waiting * seconds / taken
end
"""
"""Lua: what a door asks before it accepts a request."""

NOTE_TAKEN = f"""
-- Notes that a job was taken from a queue at a time. Returns what `expected_wait` does then.
local function note_taken(queue, now)
  local key = '{redis_keys.pace("")}'
              .. string.sub(queue, {len(Queue.redis_queue_namespace_prefix) + 1})
  local pace = redis.call('HMGET', key, 'taken', 'seconds', 'since')
  local taken, seconds = tonumber(pace[1] or '0'), tonumber(pace[2] or '0')
  local since = tonumber(pace[3] or '')  -- the last take, if other jobs waited after it
  if since then
    taken = taken + 1
    seconds = seconds + math.min(math.max(0, now - since), {_MAX_GAP})
    while seconds > {_WINDOW} do taken, seconds = taken / 2, seconds / 2 end
  end
  local waiting = redis.call('LLEN', queue)
  since = waiting > 0 and string.format('%.6f', now) or ''
  redis.call('HSET', key, 'taken', taken, 'seconds', seconds, 'since', since)
  redis.call('EXPIRE', key, {_TTL})
  if taken == 0 or seconds < {_KNOWN_AFTER} then return waiting, nil end
  return waiting, waiting * seconds / taken
end
"""
"""Lua: what a worker does with each job that it takes."""

_WAIT = (
    EXPECTED_WAIT
    + "local waiting, seconds = expected_wait(KEYS[1]) return {waiting, tostring(seconds or '')}"
)


def expected_wait(client: redis.Redis, queue: str) -> tuple[int, float | None]:
    """Return how many jobs wait in a queue, and the seconds that the last of them is expected to
    wait; None if that is not known: within the last minute no job waited when another was taken."""
    answer: Any = client.eval(_WAIT, 1, Queue.redis_queue_namespace_prefix + queue)
    waiting, seconds = cast("tuple[int, bytes]", answer)
    return waiting, float(seconds) if seconds else None
