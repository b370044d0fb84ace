"""Publish each result exactly once, to listeners of the results queue and for later lookup."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis
import structlog
from redis.commands.core import Script

from streamer import redis_keys
from streamer.domain.kinds import ResultKind
from streamer.domain.query import QueryStatus
from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.events import PUBLISH_EVENT, EventType
from streamer.queues.results_queue import BOUND_RESULTS
from streamer.redis_client.memory_reserve import MAX_ANSWERS, SHRINK_ANSWERS
from streamer.settings import Settings

FIELD = b"json"
"""Field of a results queue entry that holds the record."""

_PUBLISH_KEYS, _PUBLISH_ARGS = 5, 12
"""How many keys and arguments `_PUBLISH` takes."""

_log = structlog.get_logger(__name__)

_COUNT_OUT = """
local function count_out(open_queries, id)
  local bytes = redis.call('HGET', open_queries, id)
  redis.call('HDEL', open_queries, id)
  if not bytes then return end
  redis.call('HINCRBY', open_queries, 'total', -bytes)
end
"""

# It deletes first: then a full server allows the script to write, and no answer is refused.
# The existence of the answer key makes publication happen once, however many workers try.
# KEYS: answer, results queue, open queries, answers, in-flight set (or the answer again)
# ARGV: result, TTL s, length of the queue, request id, channel, whether there is an in-flight set,
# whether a full server may delete the answer, stream id, stream name, how a query has ended or ''
# for no event of it, whether the result is an event, bytes of the queue
_PUBLISH = (
    SHRINK_ANSWERS
    + _COUNT_OUT
    + PUBLISH_EVENT
    + BOUND_RESULTS
    + f"""
count_out(KEYS[3], ARGV[4])
bound_results(tonumber(ARGV[3]), tonumber(ARGV[12]))
if ARGV[6] == '1' then redis.call('ZREM', KEYS[5], ARGV[4]) end
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then return 0 end
redis.call('XADD', KEYS[2], '*', 'json', ARGV[1])
if ARGV[7] == '1' then redis.call('ZADD', KEYS[4], redis.call('TIME')[1], ARGV[4]) end
local over = redis.call('ZCARD', KEYS[4]) - {MAX_ANSWERS}
if over > 0 then shrink_answers(math.min(over, 4), '+inf') end
if ARGV[11] == '1' then
  publish_event('{EventType.RESULT_CREATED}', ARGV[8], ARGV[9], ARGV[1])
end
if ARGV[10] ~= '' then
  publish_event('{EventType.QUERY_FINISHED}', ARGV[8], ARGV[9], ARGV[10])
end
redis.call('PUBLISH', ARGV[5], '1')
return 1
"""
)


@dataclass(frozen=True)
class Ending:
    """What ends the job of a request, in the same step in which its result is published.

    Attributes:
        script: in Lua; it returns 1, or 0 if another worker has the job by now.
        keys, args: its KEYS and ARGV.
    """

    script: str
    keys: list[str]
    args: list[str | int | float]


@dataclass(frozen=True)
class Published:
    """What became of a result and of its job.

    Attributes:
        first: whether the request had no result before: it has this one now.
        ended: whether the job was ended by its worker, see `Ending`.
    """

    first: bool
    ended: bool


def _publish_and(ending: str) -> str:
    """Return the script that publishes a result and then ends its job; it returns what both return.

    Its KEYS and ARGV are those of both, one after the other.
    """
    return f"""
local function publish(KEYS, ARGV)
{_PUBLISH}
end
local function finish(KEYS, ARGV)
{ending}
end
local published = publish(KEYS, ARGV)
local keys, args = {{}}, {{}}
for i = {_PUBLISH_KEYS + 1}, #KEYS do keys[i - {_PUBLISH_KEYS}] = KEYS[i] end
for i = {_PUBLISH_ARGS + 1}, #ARGV do args[i - {_PUBLISH_ARGS}] = ARGV[i] end
return {{published, finish(keys, args)}}
"""


class Results:
    """Publishes, looks up, awaits and follows results."""

    def __init__(self, redis: redis.Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._publish = redis.register_script(_PUBLISH)
        self._endings: dict[str, Script] = {}
        self._count_out = redis.register_script(_COUNT_OUT + "count_out(KEYS[1], ARGV[1])")

    def publish(self, result: Result, *, owner_id: str | None, lasting: bool = False) -> bool:
        """Publish a result; return False, without publishing, if its request has one already; see
        :meth:`publish_and_end`."""
        keys, args = self._call(result, owner_id, lasting)
        return bool(self._publish(keys=keys, args=args))

    def publish_and_end(
        self, result: Result, ending: Ending, *, owner_id: str | None, lasting: bool = False
    ) -> Published:
        """Publish a result, unless its request has one already, and end its job, in one step.

        `owner_id` is the watch, the recording or the query whose in-flight set the request leaves.
        With `lasting`, it can be fetched for as long as the answer to a query. Of a result that
        verifies a hit of a search there is no event.
        """
        keys, args = self._call(result, owner_id, lasting)
        first, ended = cast(
            "tuple[int, int]",
            self._script_with(ending)(keys=[*keys, *ending.keys], args=[*args, *ending.args]),
        )
        return Published(bool(first), bool(ended))

    def _script_with(self, ending: Ending) -> Script:
        known = self._endings.get(ending.script)
        if known is None:
            script = self._redis.register_script(_publish_and(ending.script))
            known = self._endings[ending.script] = script
        return known

    def _call(
        self, result: Result, owner_id: str | None, lasting: bool
    ) -> tuple[list[str], list[str | int | float]]:
        """Return the keys and arguments with which a result is published."""
        answer = redis_keys.answer(result.request_id)
        # A query's answer can be fetched later. Of other requests only "already published"
        # matters, for as long as a second run of the same job may still happen.
        lifetime = (
            self._settings.query_ttl
            if owner_id is None or lasting
            else max(3600.0, 4 * self._settings.job_timeout)
        )
        keys = [
            answer,
            redis_keys.RESULTS,
            redis_keys.OPEN_QUERIES,
            redis_keys.ANSWERS,
            redis_keys.in_flight(owner_id) if owner_id is not None else answer,
        ]
        return keys, [
            result.model_dump_json(),
            max(1, int(lifetime)),
            self._settings.results_maxlen,
            result.request_id,
            redis_keys.answered(result.request_id),
            int(owner_id is not None),
            int(owner_id is None or owner_id != result.stream_id),  # not of a recording
            result.stream_id or "",
            result.stream_name or "",
            _finished(result) if owner_id is None and not result.verifies else "",
            int(result.kind is not ResultKind.SUMMARY and not result.verifies),
            self._settings.results_max_bytes,
        ]

    def count_out(self, query_id: str) -> None:
        """Count a query no longer among those that are unanswered."""
        self._count_out(keys=[redis_keys.OPEN_QUERIES], args=[query_id])

    def answered(self, request_id: str) -> bool:
        """Return whether the request has a result."""
        return bool(self._redis.exists(redis_keys.answer(request_id)))

    def get(self, request_id: str) -> Result | None:
        """Return the result of a request; None if there is none yet, or no longer.

        A result that this release cannot read is an error result that says so.
        """
        raw = cast(bytes | None, self._redis.get(redis_keys.answer(request_id)))
        return Result.shown(raw, request_id) if raw else None

    def get_many(self, request_ids: Sequence[str]) -> list[Result | None]:
        """Return the results of several requests; None for each that has none, or no more."""
        keys = [redis_keys.answer(request_id) for request_id in request_ids]
        raw = cast("list[bytes | None]", self._redis.mget(keys)) if keys else []
        return [
            Result.shown(each, request_id) if each else None
            for request_id, each in zip(request_ids, raw, strict=True)
        ]

    def wait(
        self,
        request_id: str,
        timeout: float,
        *,
        check: Callable[[], Result | None] = lambda: None,
    ) -> Result | None:
        """Wait for the result of a request; return None after `timeout` seconds.

        `check` is called once a second, and may find that no result will come.
        """
        found = self.get(request_id)
        if found is not None or timeout <= 0:
            return found
        deadline = time.monotonic() + timeout
        with self._redis.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(redis_keys.answered(request_id))
            while (found := self.get(request_id)) is None:
                remaining = deadline - time.monotonic()
                if remaining <= 0:
                    return None
                # A broken connection loses messages: check again once per second.
                channel.get_message(timeout=min(1.0, remaining))
                if (found := check()) is not None:
                    break
        return found

    def last_id(self) -> str:
        """Return the id of the newest entry of the results queue."""
        newest = cast(list[Any], self._redis.xrevrange(redis_keys.RESULTS, count=1))
        return newest[0][0].decode() if newest else "0-0"

    def read(
        self, last_id: str, block: float | None = None, count: int = 256
    ) -> list[tuple[str, Result]]:
        """Return entries after `last_id`, oldest first; wait up to `block` seconds for one."""
        while entries := self._read_raw(last_id, block, count):
            if readable := list(_parse_entries(entries)):
                return readable
            last_id = entries[-1][0].decode()
        return []

    def _read_raw(self, last_id: str, block: float | None, count: int) -> list[Any]:
        answer = self._redis.xread(
            {redis_keys.RESULTS: last_id},
            count=count,
            block=max(1, round(block * 1000)) if block else None,
        )
        return cast(list[Any], answer)[0][1] if answer else []

    def follow(self, last_id: str = "$", block: float = 1.0) -> Iterator[tuple[str, Result]]:
        """Yield entries after `last_id` (`$`: the newest) as they arrive, without end.

        Results that verify a hit of a search are left out.
        """
        position = self.last_id() if last_id == "$" else last_id
        while True:
            for entry_id, result in self.read(position, block):
                position = entry_id
                if not result.verifies:
                    yield entry_id, result


def _finished(result: Result) -> str:
    """Return the data of the event that a query has ended."""
    return json.dumps(
        {"id": result.request_id, "status": final_status(result), "result_id": result.id}
    )


def final_status(result: Result) -> QueryStatus:
    """Return the status of a query that has this result."""
    if result.error is None:
        return QueryStatus.DONE
    cancelled = result.error.code is ErrorCode.CANCELLED
    return QueryStatus.CANCELLED if cancelled else QueryStatus.FAILED


def read_entry(fields: dict[bytes, bytes]) -> Result:
    """Return the result in an entry of the results queue.

    Raises StreamerError(RECORD_UNREADABLE).
    """
    if FIELD not in fields:
        raise StreamerError(
            ErrorCode.RECORD_UNREADABLE, "An entry of the results queue has no field 'json'."
        )
    return Result.read(fields[FIELD])


def _parse_entries(entries: list[Any]) -> Iterator[tuple[str, Result]]:
    """Yield entries of the results queue as records; log and skip those that are no results."""
    for entry_id, fields in entries:
        shown = Result.shown(fields.get(FIELD, b""))
        if shown.request_id:
            yield entry_id.decode(), shown
        else:
            _log.warning("result_unreadable", id=entry_id.decode())
