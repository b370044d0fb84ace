"""Keep the places of live clips in their queue: a new clip takes over that of one that is dropped.

A clip that was dropped and a new one at the end of the queue would let a camera with many windows
wait for ever: each of its clips is dropped before its turn. So the job of a waiting clip stays
where it is, under its id, and gets another content. That costs the same in a queue of any length.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis
from rq import Queue
from rq.job import Job

from streamer import redis_keys
from streamer.errors import Superseded

SPLIT = """
-- Members whose job is gone, for example with a server's memory, would count forever.
local living, lost = {}, {}
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
  local there = redis.call('EXISTS', ARGV[1] .. id) == 1
  table.insert(there and living or lost, id)
end
"""
"""Lua: which requests of an in-flight set have a job, and which have lost it.

KEYS: in-flight. ARGV: prefix of jobs."""

_OWNED = """
if ARGV[2] ~= '' and redis.call('HGET', KEYS[3], 'token') ~= ARGV[2] then return 'superseded' end
"""

# KEYS: in-flight, intermediate list of the queue, job of the stream. ARGV: prefix of jobs, token of
# the stream's worker or '', name of the queue, prefix of queues, how many clips may be in flight
# Returns how many are, those that are lost, those that wait in this queue if it is as many as may
# be, and how many were dropped because they wait in another one: the stream has another model.
_WAITING = (
    _OWNED
    + SPLIT
    + """
local waiting, dropped = {}, 0
if #living < tonumber(ARGV[5]) then return {#living, lost, waiting, 0} end
for _, id in ipairs(living) do
  local status, queue = unpack(redis.call('HMGET', ARGV[1] .. id, 'status', 'origin'))
  if status == 'queued' and queue == ARGV[3] then
    if not redis.call('LPOS', KEYS[2], id) then table.insert(waiting, id) end
  elseif status == 'queued' and queue and redis.call('LREM', ARGV[4] .. queue, 1, id) > 0 then
    redis.call('DEL', ARGV[1] .. id)
    redis.call('ZREM', KEYS[1], id)
    dropped = dropped + 1
  end
end
return {#living - dropped, lost, waiting, dropped}
"""
)

# A worker that takes a job moves it to the intermediate list before it reads it.
# KEYS: in-flight, intermediate list, job of the stream. ARGV: prefix of jobs, token or '', id of
# the new clip, number of places, their ids, commands
# It writes to no key before all places are known to wait. A repeated call changes nothing.
_REPLACE = (
    _OWNED
    + """
local count = tonumber(ARGV[4])
if redis.call('HGET', ARGV[1] .. ARGV[4 + count], 'clip') == ARGV[3] then return 'replaced' end
for i = 5, 4 + count do
  local waits = redis.call('HGET', ARGV[1] .. ARGV[i], 'status') == 'queued'
  if not waits or redis.call('LPOS', KEYS[2], ARGV[i]) then return 'taken' end
end
redis.call('HSET', ARGV[1] .. ARGV[4 + count], 'clip', ARGV[3])
local at = 5 + count
while at <= #ARGV do
  local words = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + words))
  at = at + words + 1
end
return 'replaced'
"""
)


@dataclass(frozen=True)
class Waiting:
    """The clips in flight of a live watch.

    Attributes:
        count: how many there are.
        lost: requests whose jobs are gone.
        ids: if there are as many as may be, those that no worker has taken, in their order.
        dropped: how many were dropped that waited for another model.
    """

    count: int
    lost: list[bytes]
    ids: list[str]
    dropped: int


class Places:
    """The places of the live clips of one owner, a watch, in `queue`.

    Args:
        owner_id: the watch.
        stream_id: its stream.
        token: shows that the caller's worker runs the stream.
    """

    def __init__(
        self, client: redis.Redis, queue: Queue, owner_id: str, stream_id: str, token: int | None
    ) -> None:
        self._redis = client
        self._queue = queue
        self._keys = [
            redis_keys.in_flight(owner_id),
            queue.intermediate_queue_key,
            Job.key_for(redis_keys.stream_job(stream_id)),
        ]
        self._args: list[Any] = [Job.redis_job_namespace_prefix, "" if token is None else token]

    def look(self, most: int) -> Waiting:
        """Return what is in flight, and which of it waits if that is `most`. Raises Superseded."""
        answer = self._run(_WAITING, self._queue.name, Queue.redis_queue_namespace_prefix, most)
        count, lost, ids, dropped = cast("tuple[int, list[bytes], list[bytes], int]", answer)
        return Waiting(count, lost, [place.decode() for place in ids], dropped)

    def replace(self, ids: Sequence[str], clip_id: str, commands: Sequence[Any]) -> bool:
        """Run `commands`, which give the waiting jobs `ids` another content, the last of them that
        of the new clip `clip_id`; return False, without changes, if a worker has taken one.

        Raises Superseded.
        """
        return bool(self._run(_REPLACE, clip_id, len(ids), *ids, *commands) == b"replaced")

    def _run(self, script: str, *args: Any) -> Any:
        answer = self._redis.register_script(script)(keys=self._keys, args=[*self._args, *args])
        if answer == b"superseded":
            raise Superseded
        return answer
