"""Keep a reserve of a Redis server's memory, which new work never touches.

The reserve serves what ends work and so frees memory: taking jobs, answering, bookkeeping. They go
on even when something else has filled the server to its last byte: Redis (6.2 and later) and Valkey
let a script that has deleted something write on, whatever `maxmemory` says.
"""

from collections.abc import Sequence
from typing import Any, cast

import redis
from redis.client import Pipeline

from streamer import redis_keys
from streamer.redis_client.errors import is_full

RESERVE = 0.1
"""Share of `maxmemory` that new work leaves free."""

MAX_ANSWERS = 100_000
"""Maximum number of answers that are kept whole."""

_FRESH = 60
"""Seconds for which a full server keeps a new answer, so that waiting programs get it."""

_MARKER = 3600
"""Seconds for which a deleted answer is still known to have been published."""

_FEW_EVENTS = 256
"""Events that a full server keeps."""

_GRANT = 64
"""Which part of the free memory new work may take before the server is asked for its memory again:
to ask takes up to a third of the time in which a frame is stored."""

_MAX_GRANT = 16 << 20
"""Bytes of that, at most."""

_GRANT_TTL = 1000
"""Milliseconds after which the server is asked again: other programs may fill it meanwhile."""

TAKE_ROOM = f"""
-- Returns how many bytes are used of the reserve; negative if none. Without maxmemory, or for a
-- user that may not run INFO, there is no reserve.
local function reserve_used()
  local ok, info = pcall(redis.call, 'INFO', 'memory')
  if not ok or type(info) ~= 'string' then return -math.huge end
  local limit = tonumber(string.match(info, '\\nmaxmemory:(%d+)') or '0')
  if limit == 0 then return -math.huge end
  local free = tonumber(string.match(info, '\\nmem_not_counted_for_evict:(%d+)') or '0')
  local used = tonumber(string.match(info, '\\nused_memory:(%d+)'))
  return math.ceil(used - free - {1 - RESERVE} * limit)
end

-- Returns whether there is room for `size` bytes of new work, beside `kept` bytes for what open
-- work will need.
local function take_room(size, kept)
  local granted = redis.call('GET', '{redis_keys.ROOM}')
  if granted and tonumber(granted) >= size then
    local left = string.format('%.0f', tonumber(granted) - size)
    redis.call('SET', '{redis_keys.ROOM}', left, 'KEEPTTL')
    return true
  end
  local over = reserve_used() + size + kept
  if over > 0 then
    if granted then redis.call('UNLINK', '{redis_keys.ROOM}') end
    return false
  end
  local grant = math.floor(math.min(-over / {_GRANT}, {_MAX_GRANT}))
  redis.call('SET', '{redis_keys.ROOM}', string.format('%.0f', grant), 'PX', {_GRANT_TTL})
  return true
end
"""
"""Lua: what new work, a request, a frame or an event, asks before it is stored."""

SHRINK_ANSWERS = f"""
-- Deletes up to `count` answers, the oldest first, that were published before `before`. A marker
-- stays for a while: an answered request is never answered again.
local function shrink_answers(count, before)
  local ids = redis.call('ZRANGEBYSCORE', '{redis_keys.ANSWERS}', '-inf', before,
                         'LIMIT', 0, count)
  for _, id in ipairs(ids) do
    redis.call('ZREM', '{redis_keys.ANSWERS}', id)
    redis.call('ZREM', '{redis_keys.QUERIES}', id)
    redis.call('UNLINK', '{redis_keys.query("")}' .. id)
    local ttl = redis.call('TTL', '{redis_keys.answer("")}' .. id)
    if ttl > 0 then
      redis.call('SET', '{redis_keys.answer("")}' .. id, '', 'EX', math.min(ttl, {_MARKER}))
    end
  end
end
"""
"""Lua: how old answers make room."""

RESULT_GROUPS = f"""
-- Returns the id of the last result that each consumer group of the results queue was given.
local function result_groups()
  local known, groups = pcall(redis.call, 'XINFO', 'GROUPS', '{redis_keys.RESULTS}')
  local found = {{}}
  for _, group in ipairs(known and groups or {{}}) do
    local fields = {{}}
    for i = 1, #group, 2 do fields[group[i]] = group[i + 1] end
    found[fields['name']] = fields['last-delivered-id']
  end
  return found
end
"""
"""Lua: who reads the results queue, and how far."""

HAS_ROOM = (
    TAKE_ROOM
    + SHRINK_ANSWERS
    + RESULT_GROUPS
    + f"""
-- Deletes results that every consumer group of the queue, the recorder's too, has acknowledged.
local function trim_results()
  local recorded, first, first_ms, first_seq = false, nil, nil, nil
  for name, delivered in pairs(result_groups()) do
    recorded = recorded or name == '{redis_keys.RECORDER_GROUP}'
    local pending = redis.call('XPENDING', '{redis_keys.RESULTS}', name)
    local id = pending[1] > 0 and pending[2] or delivered
    local ms, seq = string.match(id, '(%d+)-(%d+)')
    ms, seq = tonumber(ms), tonumber(seq)
    if not first or ms < first_ms or (ms == first_ms and seq < first_seq) then
      first, first_ms, first_seq = id, ms, seq
    end
  end
  if recorded then redis.call('XTRIM', '{redis_keys.RESULTS}', 'MINID', first) end
end

-- Deletes events but for the newest: a listener that is further behind gets a note of the gap.
local function trim_events()
  redis.call('XTRIM', '{redis_keys.EVENTS}', 'MAXLEN', {_FEW_EVENTS})
end

-- Returns whether there is room for `size` bytes of new work, beside what the open queries and
-- their answers will need. Deletes for it what is finished and known elsewhere.
local function has_room(size)
  local kept = tonumber(redis.call('HGET', '{redis_keys.OPEN_QUERIES}', 'total') or '0')
  if take_room(size, kept) then return true end
  trim_results()
  trim_events()
  shrink_answers(256, redis.call('TIME')[1] - {_FRESH})
  return take_room(size, kept)
end
"""
)
"""Lua: what a new request asks before it is stored."""

_HAS_ROOM = HAS_ROOM + "return has_room(0)"

# KEYS: a key to delete. ARGV: for each command, the number of its words, and they
_IN_RESERVE = """
redis.call('DEL', KEYS[1])  -- from now on a full server lets this script write
local answers, at = {}, 1
while at <= #ARGV do
  local count = tonumber(ARGV[at])
  answers[#answers + 1] = redis.pcall(unpack(ARGV, at + 1, at + count))
  at = at + count + 1
end
return answers
"""

_SCRIPTS = frozenset(("EVAL", "EVALSHA"))
"""Commands that do not use the reserve: a script may bring new work."""

_Commands = Sequence[tuple[Sequence[Any], dict[str, Any]]]


def require_room(client: redis.Redis) -> None:
    """Raise redis.exceptions.OutOfMemoryError if the server has no room for new work."""
    if not client.eval(_HAS_ROOM, 0):
        raise redis.exceptions.OutOfMemoryError("no room for new work")


def words_of(commands: _Commands) -> list[Any]:
    """Return the commands of a pipeline as the arguments of a script: for each the number of its
    words, and they."""
    words: list[Any] = []
    for args, _ in commands:
        command = [*str(args[0]).split(), *args[1:]]  # such as "XGROUP CREATE"
        words += [len(command), *command]
    return words


def in_reserve(client: redis.Redis) -> redis.Redis:
    """Return a client for bookkeeping, with the connections of `client`.

    Its commands and transactions use the reserve when the server is full; a script does so if it
    deletes something first.
    """
    if isinstance(client, _ReserveRedis):
        return client
    own = _ReserveRedis(connection_pool=client.connection_pool)
    own.response_callbacks = client.response_callbacks
    return own


class _ReserveRedis(redis.Redis):
    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except redis.exceptions.ResponseError as error:
            if not is_full(error) or args[0] in _SCRIPTS:
                raise
        return _run_in_reserve(self, [(args, options)])[0]

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> Pipeline:
        pipeline = _ReservePipeline(
            self.connection_pool, self.response_callbacks, transaction, shard_hint
        )
        pipeline.atomic = transaction
        return pipeline


class _ReservePipeline(Pipeline):
    atomic = True

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = list(self.command_stack)
        try:
            return super().execute(raise_on_error)
        except redis.exceptions.ResponseError as error:
            scripted = any(args[0] in _SCRIPTS for args, _ in commands)
            if not is_full(error) or not self.atomic or scripted:
                raise
        # Redis has refused the transaction as a whole.
        client = redis.Redis(connection_pool=self.connection_pool)
        client.response_callbacks = self.response_callbacks
        return _run_in_reserve(client, commands, raise_on_error)


def _run_in_reserve(
    client: redis.Redis, commands: _Commands, raise_on_error: bool = True
) -> list[Any]:
    """Run commands in one script, and return their answers."""
    script_key = redis_keys.REPLICATED  # any key of the service serves
    answers = cast(list[Any], client.eval(_IN_RESERVE, 1, script_key, *words_of(commands)))
    parsed = []
    for (args, options), answer in zip(commands, answers, strict=True):
        if isinstance(answer, Exception):
            if raise_on_error:
                raise answer
        elif (parse := client.response_callbacks.get(args[0])) is not None:
            answer = parse(answer, **{name: v for name, v in options.items() if name != "keys"})
        parsed.append(answer)
    return parsed
