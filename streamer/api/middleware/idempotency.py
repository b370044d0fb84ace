"""Answer a POST that is sent again, with the same `Idempotency-Key`, as the first time.

The record of a key is made before the call runs, and has the id of what the call will create. If
the API is killed before it answers, the call runs again under the same id and finds what is there.

Follows draft-ietf-httpapi-idempotency-key-header: 422 for another request with the same key, 409
while the first one still runs. A call that failed is forgotten, so that it may be corrected.
"""

import asyncio
import json
import math
import re
import secrets
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from hashlib import sha256
from typing import Annotated, Any, cast

import redis
import structlog
from fastapi import Depends, Header, Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from streamer import redis_keys
from streamer.api.errors import ErrorResponse
from streamer.errors import ErrorCode

IDEMPOTENCY_SECONDS = 86400
"""Seconds for which an answer is kept."""

MAX_IDEMPOTENCY_KEYS = 10_000
"""Idempotency keys of one API key that are kept: the newest ones."""

MAX_KEPT_ANSWER = 64 << 10
"""Bytes of an answer that is kept. After a larger one the call runs again, under the same id."""

_PATTERN = r"^[!-~]{1,255}$"

# KEYS: record, index. ARGV: fingerprint, new id, owner, milliseconds of the lease, of the record,
# maximum of records
_BEGIN = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local known = redis.call('HMGET', KEYS[1], 'fingerprint', 'id', 'until', 'status', 'body', 'type')
if not known[1] then
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[5])
  local over = redis.call('ZCARD', KEYS[2]) - ARGV[6]
  if over >= 0 then
    for _, name in ipairs(redis.call('ZRANGE', KEYS[2], 0, over)) do
      redis.call('DEL', name)
      redis.call('ZREM', KEYS[2], name)
    end
  end
  redis.call('HSET', KEYS[1], 'fingerprint', ARGV[1], 'id', ARGV[2], 'owner', ARGV[3],
             'until', now + ARGV[4])
  redis.call('PEXPIRE', KEYS[1], ARGV[5])
  redis.call('ZADD', KEYS[2], now, KEYS[1])
  redis.call('PEXPIRE', KEYS[2], ARGV[5])
  return {'begun', ARGV[2]}
end
if known[1] ~= ARGV[1] then return {'mismatch'} end
if known[4] then return {'done', known[4], known[5], known[6]} end
if known[3] and tonumber(known[3]) > now then return {'busy'} end
redis.call('HSET', KEYS[1], 'owner', ARGV[3], 'until', now + ARGV[4])
return {'begun', known[2]}
"""

# KEYS: record. ARGV: owner, milliseconds of the lease
_RENEW = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
local clock = redis.call('TIME')
redis.call('HSET', KEYS[1], 'until', clock[1] * 1000 + math.floor(clock[2] / 1000) + ARGV[2])
return 1
"""

# KEYS: record. ARGV: owner, status, body, content type
_FINISH = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
redis.call('HDEL', KEYS[1], 'owner', 'until')
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], 'status', ARGV[2], 'body', ARGV[3], 'type', ARGV[4])
end
return 1
"""

# KEYS: record, index. ARGV: owner
_FORGET = """
if redis.call('HGET', KEYS[1], 'owner') ~= ARGV[1] then return 0 end
redis.call('ZREM', KEYS[2], KEYS[1])
return redis.call('DEL', KEYS[1])
"""

_log = structlog.get_logger(__name__)

_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class IdempotentRoute(APIRoute):
    """A route whose POST takes an `Idempotency-Key`: pass it as `route_class` of an `APIRouter`.

    The route function takes the id of what it creates from an :data:`IdempotentId`. The answer is
    not kept if it is streamed.
    """

    def get_route_handler(self) -> _Handler:
        """Return the handler of the route, which answers a repeated call without running it."""
        handle = super().get_route_handler()

        async def once(request: Request) -> Response:
            key = request.headers.get("idempotency-key", "")
            if request.method != "POST" or not re.fullmatch(_PATTERN, key):
                return await handle(request)
            return await cast(Idempotency, request.app.state.idempotency).answer(
                request, key, handle
            )

        return once


async def _id_of(
    request: Request,
    _: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            pattern=_PATTERN,
            description="any text that is new for each request and the same when it is sent again: "
            "for 24 hours it is then answered as the first time",
        ),
    ] = None,
) -> str | None:
    return cast("str | None", getattr(request.state, "idempotent_id", None))


IdempotentId = Annotated[str | None, Depends(_id_of)]
"""The id, without its prefix, of what a call with an `Idempotency-Key` creates; None without."""


class Idempotency:
    """The records of idempotency keys, in Redis.

    A running call renews its record; after `lease` seconds of silence another may run it.
    """

    def __init__(self, client: redis.Redis, lease: float) -> None:
        self._lease = lease
        self._begin = client.register_script(_BEGIN)
        self._renew = client.register_script(_RENEW)
        self._finish = client.register_script(_FINISH)
        self._forget = client.register_script(_FORGET)

    async def answer(
        self, request: Request, key: str, handle: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        """Return `handle(request)`, or what it returned the first time."""
        caller = getattr(request.state, "key", None) or ""
        index = redis_keys.idempotency_index(caller)
        record = redis_keys.idempotency(sha256(f"{caller}\0{key}".encode()).hexdigest())
        owner = secrets.token_hex(8)
        lease = math.ceil(self._lease * 1000)
        begun, *found = await run_in_threadpool(
            self._begin,
            [record, index],
            [
                await _fingerprint(request),
                secrets.token_hex(8),
                owner,
                lease,
                IDEMPOTENCY_SECONDS * 1000,
                MAX_IDEMPOTENCY_KEYS,
            ],
        )
        match begun:
            case b"mismatch":
                return ErrorResponse(
                    422,
                    ErrorCode.IDEMPOTENCY_MISMATCH,
                    "This Idempotency-Key belongs to another request: use a new key for each.",
                    param="Idempotency-Key",
                )
            case b"busy":
                return ErrorResponse(
                    409,
                    ErrorCode.IDEMPOTENCY_IN_PROGRESS,
                    "The first request with this Idempotency-Key is still running: try again.",
                    {"Retry-After": "1"},
                    param="Idempotency-Key",
                )
            case b"done":
                status, body, content_type = found
                headers = {"Idempotent-Replayed": "true", "content-type": content_type.decode()}
                return Response(body, int(status), headers)
        request.state.idempotent_id = found[0].decode()
        renewal = asyncio.create_task(self._keep(record, owner, lease))
        try:
            response = await handle(request)
        except Exception:
            await self._end(self._forget, [record, index], [owner])
            raise
        finally:
            renewal.cancel()
        body = getattr(response, "body", None)  # None: it is streamed
        if body is None or response.status_code >= 400:
            await self._end(self._forget, [record, index], [owner])
        elif len(body) > MAX_KEPT_ANSWER:
            await self._end(self._finish, [record], [owner, "", "", ""])
        else:
            kept = [owner, response.status_code, body, response.headers.get("content-type", "")]
            await self._end(self._finish, [record], kept)
        return response

    async def _keep(self, record: str, owner: str, lease: int) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            with suppress(redis.RedisError):
                await run_in_threadpool(self._renew, [record], [owner, lease])

    async def _end(self, script: Callable[..., Any], keys: list[str], args: list[Any]) -> None:
        try:
            await run_in_threadpool(script, keys, args)
        except redis.RedisError as error:  # its lease ends
            _log.warning("idempotency_key_kept", reason=str(error))


async def _fingerprint(request: Request) -> str:
    """Return what a request must share with the first one of its key.

    An upload is known by its length: it is too large to be kept in memory.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() in ("application/json", ""):
        body = sha256(await request.body()).hexdigest()
    else:
        body = request.headers.get("content-length", "")
    parts = [request.method, request.url.path, request.url.query, body]
    return sha256(json.dumps(parts).encode()).hexdigest()
