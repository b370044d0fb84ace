"""Authenticate callers: by key, by the session of a browser or, without keys, as this machine.

Programs send a key as Bearer. `<img>`, EventSource and WebSocket cannot send a header, so a web
page shows its key once and gets a cookie (`POST /v1/session`).

Without keys the API listens on loopback only. A web page in the user's browser could still reach
it through a host name that resolves to 127.0.0.1 (DNS rebinding) or with a cross-origin POST.
Therefore the Host and Origin headers must name this machine too. A browser sends the cookie
whichever page asks, so with one the Origin of a change and of a socket must be this service.
"""

from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

import redis
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from streamer.api.documentation import DOCS_PATH
from streamer.api.errors import ErrorResponse, redis_refusal
from streamer.api.middleware.keyring import Keyring
from streamer.api.page import is_page_path
from streamer.api_keys import ApiKey, is_loopback
from streamer.errors import ErrorCode

SESSION_COOKIE = "streamer_session"
SESSION_PATH = "/v1/session"

CLOSE_UNAUTHENTICATED = 4401
"""Code with which a WebSocket without a valid key or session is closed."""

_OPEN_PATHS = ("/healthz", "/readyz", "/openapi.json", DOCS_PATH)

_SAFE = {"GET", "HEAD", "OPTIONS"}
"""Methods that change nothing."""

_ASKING = {"/v1/queries", "/v1/chat/completions", "/mcp"}
"""Paths to which the scope `read` may POST: a question changes nothing. Agents, at `/mcp`, get the
tools that their scope allows."""


class Authentication:
    """ASGI middleware that rejects requests that may not be made.

    The state of the service, the reference of the API and the files of the web page, which show
    nothing of an installation, are open to everyone. The state of a request has its `key`, the name
    of the key or None without keys, and `may_operate`, whether it may change something.
    """

    def __init__(self, app: ASGIApp, keyring: Keyring) -> None:
        self._app = app
        self._keyring = keyring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject the request with 401 or 403, or pass it on."""
        if scope["type"] not in ("http", "websocket") or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        try:
            refusal = await self._refusal(scope, Headers(scope=scope))
        except redis.RedisError as error:
            refusal = redis_refusal(scope["app"], error)
        if refusal is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket" and refusal.status_code == 401:
            # A browser shows a page the reason only if the socket was accepted first.
            await receive()
            await send({"type": "websocket.accept"})
            await send(
                {
                    "type": "websocket.close",
                    "code": CLOSE_UNAUTHENTICATED,
                    "reason": refusal.message[:100],
                }
            )
        else:
            await refusal(scope, receive, send)

    async def _refusal(self, scope: Scope, headers: Headers) -> ErrorResponse | None:
        state = scope.setdefault("state", {})
        state["key"], state["may_operate"] = None, True
        if not self._keyring.keys.configured and not await self._keyring.known():
            return None if _is_local(headers) else _not_local()
        if scope["path"] == SESSION_PATH and scope.get("method") == "POST":  # shows a key itself
            return None if _is_same_origin(headers, needed=False) else _cross_origin()
        key = await self._bearer(headers)
        if key is None and (token := session_token(headers)) is not None:
            key = await self._keyring.find_session(token)
            changes = scope["type"] == "websocket" or scope["method"] not in _SAFE
            if key is not None and changes and not _is_same_origin(headers):
                return _cross_origin()
        if key is None:
            return _unauthenticated()
        state["key"], state["may_operate"] = key.name, key.may_operate
        return None if key.may_operate or _only_reads(scope) else _may_only_read(key)

    async def _bearer(self, headers: Headers) -> ApiKey | None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        sent = given.strip().encode("latin-1").decode(errors="replace")  # the bytes as received
        return await self._keyring.find(sent) if scheme.lower() == "bearer" and sent else None


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(f"{DOCS_PATH}/") or is_page_path(path)


def session_token(headers: Headers) -> str | None:
    """Return the token in the session cookie, None without one."""
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(SESSION_COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel is not None else None


def _only_reads(scope: Scope) -> bool:
    if scope["type"] == "websocket" or scope["method"] in _SAFE:
        return True
    return scope["path"] == SESSION_PATH or (scope["method"], scope["path"]) in {
        ("POST", path) for path in _ASKING
    }


def _unauthenticated() -> ErrorResponse:
    return ErrorResponse(
        401,
        ErrorCode.UNAUTHORIZED,
        "The API key is missing or wrong: send the header 'Authorization: Bearer KEY'.",
        {"WWW-Authenticate": "Bearer"},
    )


def _not_local() -> ErrorResponse:
    return ErrorResponse(
        403,
        ErrorCode.UNAUTHORIZED,
        "Without API keys only programs on this machine may call: add a key with `streamer keys "
        "add NAME`, or set STREAMER_API_KEYS.",
    )


def _cross_origin() -> ErrorResponse:
    return ErrorResponse(
        403,
        ErrorCode.FORBIDDEN,
        "The session cookie counts only for pages of this service: the header Origin must name "
        "the same host as the header Host.",
    )


def _may_only_read(key: ApiKey) -> ErrorResponse:
    return ErrorResponse(
        403,
        ErrorCode.FORBIDDEN,
        f"The key '{key.name}' may only read: use one with the scope operate.",
    )


def _is_same_origin(headers: Headers, *, needed: bool = True) -> bool:
    origin = headers.get("origin")
    if origin is None:
        return not needed
    try:
        return urlsplit(origin).netloc.lower() == headers.get("host", "").lower() != ""
    except ValueError:
        return False


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
