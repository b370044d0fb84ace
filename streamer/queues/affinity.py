"""Send clips of a stream to the worker that answered its last ones, because its caches know them.

That worker has opened the frames and encoded their tiles, and it has the keys of the prompt. Two
rules, which delay no job:

* A clip that is submitted wakes that worker, if it has room, instead of any.
* A worker that takes a job looks at the first few of the queue, and takes the first that is not
  another worker's. If each is another's, it takes the first. A job that was passed over
  MAX_PASSED times is taken by the next worker that looks.

The hash of a job has two fields for this: `stream`, whose frames it shows, and `passed`.
"""

from rq import Queue
from rq.worker import BaseWorker

from streamer import redis_keys

MAX_PASSED = 8
"""How many jobs behind it are taken before a job at most, because they suit their worker better."""

_LOOK_AHEAD = 16
"""Jobs of a queue among which a worker chooses."""

_TTL = 600
"""Seconds for which a stream's worker is known: by then other frames have filled its caches."""

MAX_WAKE_TOKENS = 256
WAKE_TTL = 3600
_NUDGE_TTL = 60

WAKE = f"""
-- The key that names the worker of a stream, for the model of a queue.
local function worker_key(queue, stream)
  local name = string.sub(queue, {len(Queue.redis_queue_namespace_prefix) + 1})
  return '{redis_keys.last_worker("")}' .. stream .. string.match(name, '^[^:]*(.*)$')
end

local function push_wake(name, ttl)
  local key = '{redis_keys.wake("")}' .. name
  redis.call('LPUSH', key, 1)
  redis.call('LTRIM', key, 0, {MAX_WAKE_TOKENS - 1})
  redis.call('EXPIRE', key, ttl)
end

local function wake_any(queue)
  push_wake(string.sub(queue, {len(Queue.redis_queue_namespace_prefix) + 1}), {WAKE_TTL})
end

-- Wakes the worker of a stream if it has room, else any. The stream may be ''.
local function wake_for(queue, stream)
  local worker = stream ~= '' and redis.call('GET', worker_key(queue, stream))
  if worker and redis.call('EXISTS', '{redis_keys.has_room("")}' .. worker) == 1 then
    push_wake(worker, {_NUDGE_TTL})
  else
    wake_any(queue)
  end
end
"""
"""Lua: what the door does with each job that it accepts."""

TAKE = (
    WAKE
    + f"""
-- Whether a job whose stream is known is for another worker, which is alive.
local function is_of_another(queue, stream, worker)
  local other = stream and redis.call('GET', worker_key(queue, stream))
  return other and other ~= worker
         and redis.call('EXISTS', '{BaseWorker.redis_worker_namespace_prefix}' .. other) == 1
end

-- Takes a job out of a queue, and returns its id; nil if there is none.
local function take_for(queue, jobs, worker)
  local ids = redis.call('LRANGE', queue, 0, {_LOOK_AHEAD - 1})
  if not ids[1] then return nil end
  local taken, stream
  for i, id in ipairs(ids) do
    local found = redis.call('HMGET', jobs .. id, 'stream', 'passed')
    if i == 1 then taken, stream = id, found[1] end
    if i == 1 and tonumber(found[2] or '0') >= {MAX_PASSED} then break end
    if not is_of_another(queue, found[1], worker) then
      taken, stream = id, found[1]
      break
    end
  end
  if taken ~= ids[1] then redis.call('HINCRBY', jobs .. ids[1], 'passed', 1) end
  redis.call('LREM', queue, 1, taken)
  if stream then redis.call('SET', worker_key(queue, stream), worker, 'EX', {_TTL}) end
  return taken
end

-- Notes whether a worker has room; returns whether it has none any more.
local function note_room(worker, room, milliseconds)
  local key = '{redis_keys.has_room("")}' .. worker
  if room then
    redis.call('SET', key, 1, 'PX', milliseconds)
    return false
  end
  return redis.call('DEL', key) == 1
end
"""
)
"""Lua: what a worker does when it takes a job."""
