"""Announce when workers start, fall silent and end, derived from their signs of life."""

import redis
from rq import worker_registration

from streamer import redis_keys
from streamer.events import PUBLISH_EVENT, EventType
from streamer.queues.jobs import INGEST
from streamer.queues.models import QUERIES

_TTL = 86_400

_WORKER_KEY = "rq:worker:"

# Several programs look, so the comparison and its outcome are one step.
# KEYS: known workers, beat of the recorders. ARGV: per kind of worker, its registry and its name
_LOOK = (
    PUBLISH_EVENT
    + f"""
local function announce(name, kind, state, previous)
  publish_event('{EventType.WORKER_STATE_CHANGED}', '', '', cjson.encode(
    {{name = name, kind = kind, state = state, previous = previous or cjson.null}}))
end

local known = {{}}
local stored = redis.call('HGETALL', KEYS[1])
for i = 1, #stored, 2 do
  local state, kind = string.match(stored[i + 1], '^(%S+) (.*)$')
  known[stored[i]] = {{state = state, kind = kind}}
end

local function see(name, kind, alive)
  local before, state = known[name], alive and 'running' or 'silent'
  known[name] = nil
  if before and before.state == state then return end
  announce(name, kind, state, before and before.state)
  redis.call('HSET', KEYS[1], name, state .. ' ' .. kind)
end

for i = 1, #ARGV, 2 do
  for _, key in ipairs(redis.call('SMEMBERS', ARGV[i])) do
    local name = string.sub(key, {len(_WORKER_KEY) + 1})
    see(name, ARGV[i + 1], redis.call('EXISTS', key) == 1)
  end
end
local recording = redis.call('EXISTS', KEYS[2]) == 1
if recording or known.recorder then see('recorder', 'recorder', recording) end
for name, before in pairs(known) do
  announce(name, before.kind, 'ended', before.state)
  redis.call('HDEL', KEYS[1], name)
end
redis.call('EXPIRE', KEYS[1], {_TTL})
"""
)


class WorkerStates:
    """What has been announced about the workers of an installation."""

    def __init__(self, redis: redis.Redis) -> None:
        self._look = redis.register_script(_LOOK)
        self._registries = [
            word
            for queue, kind in ((INGEST, "ingest worker"), (QUERIES, "model worker"))
            for word in (worker_registration.WORKERS_BY_QUEUE_KEY % queue, kind)
        ]

    def look(self) -> None:
        """Announce what has changed since any program has last looked.

        Raises redis.exceptions.RedisError.
        """
        self._look(keys=[redis_keys.KNOWN_WORKERS, redis_keys.RECORDER], args=self._registries)
