"""Who may call: holders of a key or, when there are no keys, programs on this machine.

Without keys the API listens on loopback only. A web page that the user has open could still reach
it, by a host name that resolves to 127.0.0.1 (DNS rebinding) or by posting across origins: so the
Host and Origin headers must name this machine too.
"""

import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from streamer.api.errors import error_response
from streamer.api.listen import is_loopback
from streamer.errors import ErrorCode

_OPEN_PATHS = {"/healthz"}


class Guard:
    """ASGI middleware that refuses callers; `/healthz` is open to all."""

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._keys and not self._has_key(headers):
            refusal = error_response(
                401,
                ErrorCode.UNAUTHORIZED,
                "A key is needed: send the header 'Authorization: Bearer KEY'.",
                {"WWW-Authenticate": "Bearer"},
            )
        elif not self._keys and not _from_here(headers):
            refusal = error_response(
                403,
                ErrorCode.UNAUTHORIZED,
                "Without keys this API answers only to localhost: set STREAMER_API_KEYS.",
            )
        else:
            await self._app(scope, receive, send)
            return
        await refusal(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # All are compared, each in constant time: how long it takes tells nothing.
        sent = given.strip().encode("latin-1")  # the bytes as they came
        matches = [hmac.compare_digest(key, sent) for key in self._keys]
        return scheme.lower() == "bearer" and any(matches)


def _from_here(headers: Headers) -> bool:
    origin = headers.get("origin")
    return _names_loopback(f"//{headers.get('host', '')}") and (
        origin is None or _names_loopback(origin)
    )


def _names_loopback(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False
