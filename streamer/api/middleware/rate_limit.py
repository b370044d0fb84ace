"""Limit how often each key may call."""

import math

import redis
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Receive, Scope, Send

from streamer import redis_keys
from streamer.api.errors import ErrorResponse
from streamer.errors import ErrorCode

# A bucket of a minute's calls that refills evenly. What is stored is when it will be full again
# (GCRA). Returns the milliseconds until there is room for this call, 0 if there is now.
# KEYS: the bucket. ARGV: calls per minute
_TAKE = """
local clock = redis.call('TIME')
local now = clock[1] * 1000 + clock[2] / 1000
local step = 60000 / ARGV[1]
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now) + step
local wait = full_at - 60000 - now
if wait > 0 then return math.ceil(wait) end
redis.call('SET', KEYS[1], string.format('%.3f', full_at), 'PX', math.ceil(full_at - now))
return 0
"""


class RateLimit:
    """ASGI middleware that answers 429 to a key that calls more than `per_minute` times a minute.

    All callers without a key count as one. While Redis does not answer, nothing is limited.
    """

    def __init__(self, app: ASGIApp, client: redis.Redis, per_minute: int) -> None:
        self._app = app
        self._per_minute = per_minute
        self._take = client.register_script(_TAKE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject the request with 429, or pass it on."""
        state = scope.get("state", {})
        if scope["type"] != "http" or "key" not in state:  # open to everyone
            await self._app(scope, receive, send)
            return
        wait = await run_in_threadpool(self._wait_of, state["key"] or "")
        if wait <= 0:
            await self._app(scope, receive, send)
            return
        rejection = ErrorResponse(
            429,
            ErrorCode.RATE_LIMITED,
            f"The key makes more than {self._per_minute:,} calls a minute: try again in {wait} s, "
            "or raise the setting rate_limit.",
            {"Retry-After": str(wait)},
        )
        await rejection(scope, receive, send)

    def _wait_of(self, name: str) -> int:
        """Return the seconds until the key may call again, 0 if it may now."""
        try:
            wait = self._take(keys=[redis_keys.rate(name)], args=[self._per_minute])
        except redis.RedisError:
            return 0
        return math.ceil(int(wait) / 1000)
