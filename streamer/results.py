"""The results queue: every answer exactly once, to whoever listens and whoever asks later."""

import time
from collections.abc import Iterator
from typing import Any, cast

import redis
import structlog
from pydantic import ValidationError

from streamer import redis_keys
from streamer.domain import Result
from streamer.settings import Settings

FIELD = b"json"
"""The field of a results queue entry that holds the record."""

_log = structlog.get_logger(__name__)

# A server that is full lets a script write once it has deleted: what is answered is never refused.
# The existence of the answer is what makes publication happen once, whoever tries, however often.
# KEYS: answer, results queue, in-flight set (or the answer again)
# ARGV: result, TTL s, length, request id, channel, whether there is an in-flight set
_PUBLISH = """
redis.call('XTRIM', KEYS[2], 'MAXLEN', '~', ARGV[3])
if ARGV[6] == '1' then redis.call('ZREM', KEYS[3], ARGV[4]) end
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'EX', ARGV[2]) then return 0 end
redis.call('XADD', KEYS[2], '*', 'json', ARGV[1])
redis.call('PUBLISH', ARGV[5], '1')
return 1
"""


class Results:
    """Publish, look up, await and follow results."""

    def __init__(self, redis: redis.Redis, settings: Settings) -> None:
        self._redis = redis
        self._settings = settings
        self._publish = redis.register_script(_PUBLISH)

    def publish(self, result: Result, *, owner_id: str | None) -> bool:
        """Publish once per request; False when an answer was there already, which then stands.

        `owner_id` is whose in-flight set the request leaves: its watch, or its recording.
        """
        answer = redis_keys.answer(result.request_id)
        # A query's answer can be fetched for long; of others only "already published" matters,
        # and that only for as long as a second run of the same job may still come.
        lifetime = (
            self._settings.query_ttl
            if owner_id is None
            else max(3600.0, 4 * self._settings.job_timeout)
        )
        published = self._publish(
            keys=[
                answer,
                redis_keys.RESULTS,
                redis_keys.in_flight(owner_id) if owner_id is not None else answer,
            ],
            args=[
                result.model_dump_json(),
                max(1, int(lifetime)),
                self._settings.results_maxlen,
                result.request_id,
                redis_keys.answered(result.request_id),
                int(owner_id is not None),
            ],
        )
        return bool(published)

    def answered(self, request_id: str) -> bool:
        """Whether the request has its result already."""
        return bool(self._redis.exists(redis_keys.answer(request_id)))

    def get(self, request_id: str) -> Result | None:
        """The result of a request, if it is there."""
        raw = cast(bytes | None, self._redis.get(redis_keys.answer(request_id)))
        return Result.model_validate_json(raw) if raw is not None else None

    def wait(self, request_id: str, timeout: float) -> Result | None:
        """The result of a request as soon as it is there; None after `timeout` seconds."""
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
                # A message may be lost with its connection, so look again once a second.
                channel.get_message(timeout=min(1.0, remaining))
        return found

    def last_id(self) -> str:
        """Id of the newest entry of the results queue: where following starts."""
        newest = cast(list[Any], self._redis.xrevrange(redis_keys.RESULTS, count=1))
        return newest[0][0].decode() if newest else "0-0"

    def read(
        self, last_id: str, block: float | None = None, count: int = 256
    ) -> list[tuple[str, Result]]:
        """Entries after `last_id`, oldest first; waits up to `block` seconds for the first."""
        while entries := self._read_raw(last_id, block, count):
            if readable := list(parse_entries(entries)):
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
        """Entries after `last_id` (`$`: from now on) as they come, for ever."""
        position = self.last_id() if last_id == "$" else last_id
        while True:
            for entry_id, result in self.read(position, block):
                position = entry_id
                yield entry_id, result


def parse_entries(entries: list[Any]) -> Iterator[tuple[str, Result]]:
    """Entries of the results queue as records; one that is none is logged and left out."""
    for entry_id, fields in entries:
        try:
            yield entry_id.decode(), Result.model_validate_json(fields[FIELD])
        except (ValidationError, KeyError, TypeError) as error:
            _log.warning("result_unreadable", id=entry_id.decode(), reason=type(error).__name__)
