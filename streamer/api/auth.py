"""Authenticate API callers: by key or, without keys, as programs on this machine.

Without keys the API listens on loopback only. A web page in the user's browser could still reach
it through a host name that resolves to 127.0.0.1 (DNS rebinding) or with a cross-origin POST.
Therefore the Host and Origin headers must name this machine too.
"""

import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from streamer.api.errors import ErrorResponse
from streamer.api.listen import is_loopback
from streamer.errors import ErrorCode

_OPEN_PATHS = {"/healthz", "/readyz"}


class Authentication:
    """ASGI middleware that rejects unauthenticated requests.

    `/healthz` and `/readyz` are open to everyone.
    """

    def __init__(self, app: ASGIApp, keys: Sequence[str]) -> None:
        self._app = app
        self._keys = [key.encode() for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject the request with 401 or 403, or pass it on."""
        if scope["type"] not in ("http", "websocket") or scope["path"] in _OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._keys and not self._has_key(headers):
            rejection = ErrorResponse(
                401,
                ErrorCode.UNAUTHORIZED,
                "The API key is missing or wrong: send the header 'Authorization: Bearer KEY'.",
                {"WWW-Authenticate": "Bearer"},
            )
        elif not self._keys and not _is_local(headers):
            rejection = ErrorResponse(
                403,
                ErrorCode.UNAUTHORIZED,
                "Without API keys only programs on this machine may call: set STREAMER_API_KEYS.",
            )
        else:
            await self._app(scope, receive, send)
            return
        await rejection(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Compare with every key in constant time, so that the time taken reveals nothing.
        sent = given.strip().encode("latin-1")  # the bytes as received
        matches = [hmac.compare_digest(key, sent) for key in self._keys]
        return scheme.lower() == "bearer" and any(matches)


def _is_local(headers: Headers) -> bool:
    origin = headers.get("origin")
    return _names_loopback(f"//{headers.get('host', '')}") and (
        origin is None or _names_loopback(origin)
    )


def _names_loopback(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False
