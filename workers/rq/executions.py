"""Take, renew and end executions of jobs: each in one step, and only for the worker that owns it.

A worker may be frozen, or cut off from Redis, for so long that its jobs are taken over, and then
continue. So each time a job is taken its hash gets a new token, higher than all before. A
worker that renews, gives back or ends an execution shows the token, and is refused if the job has
another one. The same token guards what a stream writes: its status, its frames and its clips.

Each step is a Lua script, for three reasons. Nothing happens between its check and its writes. A
client that repeats it, because the reply was lost, changes nothing the second time. And its times
are those of Redis, however wrong the clocks of the workers are. The scripts begin with a command
that needs no memory: a full server then lets them write.
"""

import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import cast
from uuid import uuid4

import redis
from rq.defaults import DEFAULT_FAILURE_TTL, DEFAULT_RESULT_TTL
from rq.exceptions import AbandonedJobError
from rq.executions import Execution, ExecutionRegistry
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job, JobStatus
from rq.queue import Queue
from rq.registry import FailedJobRegistry, FinishedJobRegistry, StartedJobRegistry
from rq.results import Result
from rq.serializers import JSONSerializer
from rq.suspension import WORKERS_SUSPENDED
from rq.utils import utcformat
from rq.worker import BaseWorker

from streamer import redis_keys
from streamer.queues.affinity import TAKE
from streamer.queues.pace import NOTE_TAKEN
from streamer.queues.results import Ending
from workers.rq.job import PlainJob, Slot

_MAX_ABANDONED = 100
"""Expired executions that are ended in one step."""

_CLOCK = """
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000

-- Whether a worker renews one of these executions of a job.
local function renewed(started, id, ids)
  for _, execution in ipairs(ids) do
    local ends = redis.call('ZSCORE', started, id .. ':' .. execution)
    if ends and tonumber(ends) > now then return true end
  end
  return false
end

-- Returns the executions of a job, by RQ's index and its own field. The index alone cannot tell
-- whether it runs: programs that only read it trim it by their own clocks.
local function executions_of(executions, own)
  local ids = redis.call('ZRANGE', executions, 0, -1)
  ids[#ids + 1] = own or nil
  return ids
end

local function runs(started, job, executions, id)
  local own = redis.call('HGET', job, 'execution')
  return renewed(started, id, executions_of(executions, own))
end
"""

_BEGIN = """
-- Lets a job that is in no queue run, of which this is the record. Returns the token, or 0 and why
-- the job is not to be run.
local function begin(id, job, record, started, executions, hash, own, tokens, execution, lease,
                     worker, at)
  local fields = {}
  for i = 1, #record, 2 do fields[record[i]] = record[i + 1] end
  local status = fields['status']
  if not status or not fields['data'] then return 0, 'deleted' end
  if status == 'finished' or status == 'failed' or status == 'stopped' or status == 'canceled' then
    return 0, 'ended'
  end
  local others = executions_of(executions, fields['execution'])
  if renewed(started, id, others) then
    redis.call('HSET', job, 'status', 'started')
    return 0, 'running'
  end
  for _, other in ipairs(others) do
    redis.call('ZREM', started, id .. ':' .. other)  -- expired, and taken over here
  end
  if others[1] then redis.call('DEL', executions) end
  local token = math.max(math.floor(now * 1000), tonumber(redis.call('GET', tokens) or '0') + 1)
  local shown, member = string.format('%.0f', token), id .. ':' .. execution
  redis.call('SET', tokens, shown)
  redis.call('HSET', hash, 'id', execution, 'job_id', id, 'created_at', now,
             'last_heartbeat', now, 'worker_name', worker)
  redis.call('EXPIRE', hash, lease)
  redis.call('ZADD', started, now + lease, member)
  redis.call('ZADD', executions, now + lease + 60, execution)
  redis.call('EXPIRE', executions, lease + 60)
  redis.call('SADD', own, member)
  redis.call('EXPIRE', own, lease + 60)
  redis.call('HSET', job, 'status', 'started', 'worker_name', worker, 'started_at', at,
             'last_heartbeat', at, 'execution', execution, 'token', shown)
  redis.call('PERSIST', job)
  return token, ''
end
"""

# Takes a job by priority and lets it run, and deletes the wake-ups of queues that turn out empty.
# It begins with a command that needs no memory and does nothing: a full server then lets it write.
# KEYS: queue, intermediate, wake, started registry; four for each queue. ARGV: the key that says
# that all workers are suspended, prefix of the keys of jobs, the worker, whether it has room ('1')
# if it takes none and if it takes one, the milliseconds for which that counts, execution id, lease
# s, started at, prefixes of the keys executions of a job and execution, executions of the worker,
# tokens, prefix of the keys of queues
# Returns the key of the queue, the id of the job, its record, how many jobs wait after it, the
# seconds that the last one of its queue is expected to wait, 0 if that is not known, and the token,
# or 0 and why the job is not to be run; false if there is none, or '' if workers are suspended.
_TAKE = (
    NOTE_TAKEN
    + TAKE
    + _CLOCK
    + _BEGIN
    + """
redis.call('LTRIM', KEYS[2], 0, -1)
if redis.call('EXISTS', ARGV[1], ARGV[12]) > 0 then
  for _, member in ipairs(redis.call('SMEMBERS', ARGV[12])) do
    if string.sub(member, -#ARGV[7]) == ARGV[7] then  -- repeated, because the reply was lost
      local id = string.sub(member, 1, -#ARGV[7] - 2)
      local job = ARGV[2] .. id
      local record, origin = redis.call('HGETALL', job), redis.call('HGET', job, 'origin')
      local mine = redis.call('HGET', job, 'execution') == ARGV[7]
      local token = mine and tonumber(redis.call('HGET', job, 'token')) or 0
      return {ARGV[14] .. (origin or ''), id, record, 1, '0', token, 'taken over'}
    end
  end
  if redis.call('EXISTS', ARGV[1]) == 1 then return '' end
end
for i = 1, #KEYS, 4 do
  local id = take_for(KEYS[i], ARGV[2], ARGV[3])
  if id then
    local left, wait = note_taken(KEYS[i], now)
    local job = ARGV[2] .. id
    local record = redis.call('HGETALL', job)
    local token, reason = begin(
      id, job, record, KEYS[i + 3], ARGV[10] .. id, ARGV[11] .. id .. ':' .. ARGV[7], ARGV[12],
      ARGV[13], ARGV[7], tonumber(ARGV[8]), ARGV[3], ARGV[9]
    )
    -- There it is found by another worker, if this one dies before it has reported the loss.
    if reason == 'deleted' then redis.call('RPUSH', KEYS[i + 1], id) end
    local full = note_room(ARGV[3], ARGV[5] == '1', ARGV[6])
    if full and left > 0 then wake_any(KEYS[i]) end  -- only this worker may have been woken
    for j = i + 4, #KEYS, 4 do
      local waiting = redis.call('LLEN', KEYS[j])
      left = left + waiting
      if full and waiting > 0 then wake_any(KEYS[j]) end
    end
    return {KEYS[i], id, record, left, tostring(wait or 0), token, reason}
  end
  redis.call('DEL', KEYS[i + 2])
end
note_room(ARGV[3], ARGV[4] == '1', ARGV[6])
return false
"""
)

# KEYS: worker, executions of the worker, then for each execution: started registry, job,
# executions of the job, execution. ARGV: lease s, worker, then for each: job id, execution id,
# token. Returns 1 for each that is still owned, or 0.
_RENEW = (
    _CLOCK
    + """
local lease, held = tonumber(ARGV[1]), {}
redis.call('EXPIRE', KEYS[1], lease)
redis.call('EXPIRE', KEYS[2], lease)
for i = 1, (#ARGV - 2) / 3 do
  local started, job, executions, hash = unpack(KEYS, 4 * i - 1, 4 * i + 2)
  local id, execution, token = unpack(ARGV, 3 * i, 3 * i + 2)
  local member = id .. ':' .. execution
  held[i] = 0
  if redis.call('HGET', job, 'token') == token and redis.call('ZSCORE', started, member) then
    held[i] = 1
    if redis.call('EXPIRE', hash, lease) == 0 then
      redis.call('HSET', hash, 'id', execution, 'job_id', id, 'created_at', now,
                 'worker_name', ARGV[2])
    end
    redis.call('HSET', hash, 'last_heartbeat', now)
    redis.call('EXPIRE', hash, lease)
    redis.call('ZADD', started, now + lease, member)
    redis.call('ZADD', executions, now + lease + 60, execution)
    redis.call('EXPIRE', executions, lease + 60)
  end
end
return held
"""
)

# KEYS of the scripts that end an execution: started registry, job, executions of the job,
# execution, executions of the worker, worker, ... ARGV: job id, execution id, token, ...
_END = """
local id, execution = ARGV[1], ARGV[2]
local owned = redis.call('ZREM', KEYS[1], id .. ':' .. execution) == 1
redis.call('DEL', KEYS[4])
redis.call('ZREM', KEYS[3], execution)
redis.call('SREM', KEYS[5], id .. ':' .. execution)
if not owned or redis.call('HGET', KEYS[2], 'token') ~= ARGV[3] then return 0 end
redis.call('HDEL', KEYS[2], 'token', 'execution')
local function count(outcome, seconds)
  if redis.call('EXISTS', KEYS[6]) == 0 then return end
  redis.call('HINCRBY', KEYS[6], outcome, 1)
  redis.call('HINCRBYFLOAT', KEYS[6], 'total_working_time', seconds)
end
"""

# KEYS from 7: queue, wake. ARGV from 4: retries left or ''
_GIVE_BACK = (
    _END
    + """
redis.call('HSET', KEYS[2], 'status', 'queued')
if ARGV[4] ~= '' then redis.call('HSET', KEYS[2], 'retries_left', ARGV[4]) end
redis.call('LPUSH', KEYS[7], id)
redis.call('LPUSH', KEYS[8], 1)
redis.call('EXPIRE', KEYS[8], 60)
return 1
"""
)

# KEYS from 7: finished registry, results of the job. ARGV from 4: TTL s, ended at, working s
_SUCCEED = (
    _CLOCK
    + _END
    + """
local ttl = tonumber(ARGV[4])
if ttl == 0 then
  redis.call('DEL', KEYS[2], KEYS[3], KEYS[8])
else
  redis.call('HSET', KEYS[2], 'status', 'finished', 'ended_at', ARGV[5],
             'last_heartbeat', ARGV[5])
  if ttl > 0 then redis.call('EXPIRE', KEYS[2], ttl) end
  redis.call('ZADD', KEYS[7], ttl > 0 and now + ttl or '+inf', id)
end
count('successful_job_count', ARGV[6])
return 1
"""
)

_FAILED = """
-- Records the failure as RQ does.
local function fail(job, results, registry, id, ttl, ended_at, ...)
  redis.call('HSET', job, 'status', 'failed')
  if ended_at ~= '' then
    redis.call('HSET', job, 'ended_at', ended_at, 'last_heartbeat', ended_at)
  end
  redis.call('ZADD', registry, ttl > 0 and now + ttl or '+inf', id)
  redis.call('XADD', results, 'MAXLEN', 10, '*', 'type', RESULT_TYPE, ...)
  if ttl > 0 then
    redis.call('EXPIRE', job, ttl)
    redis.call('EXPIRE', results, ttl)
  end
end
""".replace("RESULT_TYPE", str(Result.Type.FAILED.value))

# KEYS from 7: failed registry, results of the job
# ARGV from 4: TTL s, ended at, working s, worker, compressed trace, when the execution began
_FAIL = (
    _CLOCK
    + _FAILED
    + _END
    + """
fail(KEYS[2], KEYS[8], KEYS[7], id, tonumber(ARGV[4]), ARGV[5],
     'worker_name', ARGV[7], 'exc_string', ARGV[8], 'execution_id', execution,
     'execution_started_at', ARGV[9], 'execution_ended_at', now)
count('failed_job_count', ARGV[6])
return 1
"""
)

# Moves jobs whose executions have expired back to the queue, or to the failed registry if they have
# no retries left. Also drops entries that have expired from the registries of ended jobs.
# KEYS: started registry, queue, wake, failed registry, finished registry
# ARGV: prefixes of the keys job, executions of a job, execution, results; TTL s of a failed job;
# compressed reason; maximum number; lease s; latest plausible time. Returns for each: job id,
# worker, whether it goes on. Returns false if the clock of Redis was set forward since the workers
# last renewed: then all leases seem to have expired.
_ABANDON = (
    _CLOCK
    + _FAILED
    + """
if now > tonumber(ARGV[9]) then return false end
local moved = {}
-- Leases that end too late were given before the clock was set back.
local lease = tonumber(ARGV[8])
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now + 2 * lease, '+inf')) do
  redis.call('ZADD', KEYS[1], now + lease, member)
end
redis.call('ZREMRANGEBYSCORE', KEYS[4], 0, now)
redis.call('ZREMRANGEBYSCORE', KEYS[5], 0, now)
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now,
                                   'LIMIT', 0, tonumber(ARGV[7]))) do
  redis.call('ZREM', KEYS[1], member)
  redis.call('DEL', ARGV[3] .. member)
  local id, execution = string.match(member, '^(.*):([^:]*)$')
  if id then
    local job, executions = ARGV[1] .. id, ARGV[2] .. id
    redis.call('ZREM', executions, execution)
    if redis.call('HGET', job, 'status') == 'started'
       and not runs(KEYS[1], job, executions, id) then
      redis.call('HDEL', job, 'token', 'execution')
      local left = tonumber(redis.call('HGET', job, 'retries_left') or '0') or 0
      if left > 0 then
        redis.call('HSET', job, 'status', 'queued', 'retries_left', left - 1)
        local front = redis.call('HGET', job, 'enqueue_at_front_on_retry') == '1'
        redis.call(front and 'LPUSH' or 'RPUSH', KEYS[2], id)
        redis.call('LPUSH', KEYS[3], 1)
        redis.call('EXPIRE', KEYS[3], 60)
      else
        local ttl = tonumber(redis.call('HGET', job, 'failure_ttl') or ARGV[5])
        fail(job, ARGV[4] .. id, KEYS[4], id, ttl, '', 'worker_name', '', 'exc_string', ARGV[6])
      end
      moved[#moved + 1] = {id, redis.call('HGET', job, 'worker_name') or '', left > 0 and 1 or 0}
    end
  end
end
return moved
"""
)

# KEYS: intermediate, queue. ARGV: job id
_RECOVER = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
return redis.call('LPUSH', KEYS[2], ARGV[1])
"""

_ABANDONED = f"Moved to {FailedJobRegistry.__name__}, due to {AbandonedJobError.__name__}"


@dataclass(frozen=True)
class AbandonedJob:
    """A job whose worker was silent for a lease.

    Attributes:
        job_id: its id.
        worker: the worker that ran it.
        retried: whether it is back in the queue; otherwise it has failed.
    """

    job_id: str
    worker: str
    retried: bool


DELETED = "deleted"
UNREADABLE_RECORD = "unreadable"
"""Why a job is not run: its record is gone, or cannot be read."""


@dataclass(frozen=True)
class Taken:
    """A job that was taken out of its queue.

    Attributes:
        queue: its queue.
        job_id: its id.
        slot: what runs it now; None if it is not to be run.
        reason: why it is not: it has ended, runs already, or its record is gone or unreadable.
        left: how many jobs wait in this queue and those of a lower priority.
    """

    queue: Queue
    job_id: str
    slot: Slot | None
    reason: str
    left: int


class Executions:
    """The executions of jobs, by all workers.

    Args:
        connection: the Redis server of the queues.
        lease: whole seconds after which an execution that is not renewed has expired.
    """

    def __init__(self, connection: redis.Redis, lease: int) -> None:
        self._redis = connection
        self._lease = lease
        self._execution_prefix = Execution("", "", connection).key.removesuffix(":")
        self._asked = ""  # id of the execution that was asked for last, until that is answered
        self._take = connection.register_script(_TAKE)
        self._renew = connection.register_script(_RENEW)
        self._give_back = connection.register_script(_GIVE_BACK)
        self._succeed = connection.register_script(_SUCCEED)
        self._fail = connection.register_script(_FAIL)
        self._abandon = connection.register_script(_ABANDON)
        self._recover = connection.register_script(_RECOVER)

    def take(
        self,
        queues: Sequence[Queue],
        worker: str,
        now: datetime,
        *,
        room: tuple[bool, bool] = (False, False),
        room_ms: int = 1000,
    ) -> Taken | bool:
        """Take the first job of `queues`, by priority, and let it run.

        Args:
            queues: where to look, in this order.
            worker: name of the worker that runs it.
            now: the time, for the job's record.
            room: whether the worker has room for more jobs if it takes none, and if it takes one.
            room_ms: milliseconds for which that counts.

        Returns what was taken; False if there is no job, True if all workers are suspended.
        """
        # The same until it is answered: a job that was taken although the reply was lost is found.
        self._asked = self._asked or uuid4().hex
        execution = Execution(self._asked, "", self._redis, worker)
        answer = self._take(
            keys=[key for queue in queues for key in _keys_of_queue(queue.name)],
            args=[
                WORKERS_SUSPENDED,
                Job.redis_job_namespace_prefix,
                worker,
                *map(int, room),
                room_ms,
                execution.id,
                self._lease,
                utcformat(now),
                _executions_key(""),
                self._execution_prefix,
                execution.worker_executions_key,
                redis_keys.TOKENS,
                Queue.redis_queue_namespace_prefix,
            ],
        )
        self._asked = ""
        if not answer:
            return bool(answer == b"")
        key, job_id, record, left, wait, token, reason = cast(
            "tuple[bytes, bytes, list[bytes], int, bytes, int, bytes]", answer
        )
        queue = self._queue_of(key.decode(), queues)
        execution.job_id = job_id.decode()
        if not token:
            return Taken(queue, execution.job_id, None, reason.decode(), left)
        job = PlainJob(execution.job_id, connection=self._redis, serializer=JSONSerializer)
        unreadable: Exception | None = None
        try:
            job.restore(dict(zip(record[::2], record[1::2], strict=True)))
        except Exception as error:  # of any worker that reads it
            unreadable = error
        slot = Slot(job, queue, execution, token)
        slot.first_attempt = unreadable is None and job.started_at is None
        slot.wait = float(wait)
        job.worker_name, job.started_at, job._status = worker, now, JobStatus.STARTED
        if unreadable is None:
            return Taken(queue, execution.job_id, slot, "", left)
        name = type(unreadable).__name__
        self.fail(slot, f"The record of the job is unreadable ({name}).", now)
        return Taken(queue, execution.job_id, None, f"{UNREADABLE_RECORD}: {name}", left)

    def _queue_of(self, key: str, queues: Sequence[Queue]) -> Queue:
        """Return the queue with a key. It may be none of `queues` if the call was repeated."""
        name = key.removeprefix(Queue.redis_queue_namespace_prefix)
        known = next((queue for queue in queues if queue.name == name), None)
        if known is not None or not name:
            return known or queues[0]
        return Queue(name, connection=self._redis, serializer=JSONSerializer)

    def renew(self, worker: BaseWorker, slots: Sequence[Slot]) -> list[bool]:
        """Prolong the lease of a worker and of what it runs. Return for each slot whether the
        worker still owns its job."""
        keys = [worker.key, worker.executions_key]
        args: list[str | int] = [self._lease, worker.name]
        for slot in slots:
            keys += [
                slot.queue.started_job_registry.key,
                slot.job.key,
                _executions_key(slot.job.id),
                slot.execution.key,
            ]
            args += [slot.job.id, slot.execution.id, slot.token]
        return [bool(held) for held in self._renew(keys=keys, args=args)]

    def give_back(self, slot: Slot) -> bool:
        """Put a job back at the front of its queue, as if it had not been taken.

        Like the methods below, return whether the worker still owned it, or else do nothing.
        """
        retries = "" if slot.job.retries_left is None else slot.job.retries_left
        keys = [slot.queue.key, redis_keys.wake(slot.queue.name)]
        return self._end(self._give_back, slot, keys, [retries])

    def succeed(self, slot: Slot, now: datetime) -> bool:
        """Record that a job has been done, for as long as its `result_ttl` says."""
        success = self.success(slot, now)
        return bool(self._succeed(keys=success.keys, args=success.args))

    @staticmethod
    def success(slot: Slot, now: datetime) -> Ending:
        """Return what :meth:`succeed` does, to be done together with the job's last step."""
        job = slot.job
        keys = [FinishedJobRegistry.key_template.format(slot.queue.name), _results_key(job.id)]
        ttl = job.get_result_ttl(DEFAULT_RESULT_TTL)
        args: list[str | int | float] = [ttl, utcformat(now), slot.seconds_until(now)]
        return Ending(_SUCCEED, [*_keys_of(slot), *keys], [*_args_of(slot), *args])

    def fail(self, slot: Slot, trace: str, now: datetime) -> bool:
        """Record that a job has failed, for as long as its `failure_ttl` says."""
        job = slot.job
        keys = [slot.queue.failed_job_registry.key, _results_key(job.id)]
        ttl = DEFAULT_FAILURE_TTL if job.failure_ttl is None else job.failure_ttl
        began = job.started_at.timestamp() if job.started_at is not None else now.timestamp()
        return self._end(
            self._fail,
            slot,
            keys,
            [
                ttl,
                utcformat(now),
                slot.seconds_until(now),
                slot.execution.worker_name,
                _packed(trace),
                began,
            ],
        )

    def abandon(self, queue: Queue, now: datetime) -> list[AbandonedJob] | None:
        """Put the jobs back whose executions have expired, or record that they have failed when
        they have no retries left.

        `now` is what the caller believes the time of Redis to be. If that is far ahead of it, its
        clock has been set: nothing is done then, and None is returned.
        """
        moved = self._abandon(
            keys=[
                queue.started_job_registry.key,
                queue.key,
                redis_keys.wake(queue.name),
                queue.failed_job_registry.key,
                queue.finished_job_registry.key,
            ],
            args=[
                Job.redis_job_namespace_prefix,
                _executions_key(""),
                self._execution_prefix,
                _results_key(""),
                DEFAULT_FAILURE_TTL,
                _packed(_ABANDONED),
                _MAX_ABANDONED,
                self._lease,
                now.timestamp() + self._lease / 3,
            ],
        )
        if moved is None:
            return None
        return [
            AbandonedJob(job_id.decode(), worker.decode(), bool(retried))
            for job_id, worker, retried in moved
        ]

    def recover(self, queue: Queue, job_id: str) -> None:
        """Put a job of the intermediate list back, if it is still there."""
        self._recover(keys=[queue.intermediate_queue_key, queue.key], args=[job_id])

    def _end(
        self,
        script: redis.commands.core.Script,
        slot: Slot,
        keys: list[str],
        args: list[str | int | float],
    ) -> bool:
        return bool(script(keys=[*_keys_of(slot), *keys], args=[*_args_of(slot), *args]))


def _keys_of(slot: Slot) -> list[str]:
    """Return the first keys of each script that ends an execution."""
    job, execution = slot.job, slot.execution
    return [
        _started_key(slot.queue.name),
        job.key,
        _executions_key(job.id),
        execution.key,
        execution.worker_executions_key,
        _worker_key(execution.worker_name),
    ]


def _args_of(slot: Slot) -> list[str | int | float]:
    """Return the first arguments of each script that ends an execution."""
    return [slot.job.id, slot.execution.id, slot.token]


@lru_cache(maxsize=256)
def _keys_of_queue(name: str) -> tuple[str, str, str, str]:
    """Return the keys of a queue: itself, its intermediate list, its wake-ups and what runs. RQ
    makes an object for each, which takes longer than the rest of taking a job."""
    key = Queue.redis_queue_namespace_prefix + name
    intermediate = IntermediateQueue.get_intermediate_queue_key(key)
    return key, intermediate, redis_keys.wake(name), _started_key(name)


def _started_key(queue: str) -> str:
    return StartedJobRegistry.key_template.format(queue)


def _executions_key(job_id: str) -> str:
    return ExecutionRegistry.key_template.format(job_id)


def _results_key(job_id: str) -> str:
    return str(Result.get_key(job_id))  # type: ignore[no-untyped-call]


def _worker_key(name: str) -> str:
    return BaseWorker.redis_worker_namespace_prefix + name


def _packed(trace: str) -> str:
    """Return a trace as RQ stores it."""
    return b64encode(zlib.compress(trace.encode())).decode()
