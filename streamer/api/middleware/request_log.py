"""Give each request an id, log each with one line, and count it."""

import logging
import re
import time
from typing import Any
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamer.api.errors import ErrorResponse
from streamer.api.page import STATIC_PATH
from streamer.api.request_metrics import RequestMetrics
from streamer.errors import ErrorCode

REQUEST_ID = "x-request-id"

_log = structlog.get_logger("streamer.api")

_ACCEPTED_ID = re.compile(r"[A-Za-z0-9._:=/+-]{1,128}")
_MAX_PATH = 200
_QUIET_PATHS = ("/healthz", f"{STATIC_PATH}/")
"""Beginnings of paths that a supervisor calls every few seconds, or a browser dozens of at once:
logged at level `debug` unless they fail."""

_UNEXPECTED = "Unexpected error: see the log of `streamer serve`."


class RequestLog:
    """ASGI middleware around all others: request ids, the access log, unexpected errors, metrics.

    The id is the request's `X-Request-ID`, or a new one. It is in the response, in an error's body
    and in every line that is logged meanwhile. The access log has no query string and no body: what
    users ask and search for is theirs.
    """

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and log how it ended."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if _ACCEPTED_ID.fullmatch(given) else uuid4().hex
        began = time.monotonic()
        state: dict[str, Any] = scope.setdefault("state", {})
        status = 0
        counted = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, counted
            match message["type"]:
                case "http.response.start" | "websocket.http.response.start":
                    status = message["status"]
                    MutableHeaders(scope=message)[REQUEST_ID] = request_id
                case "websocket.accept":
                    status = 101
                    message.setdefault("headers", [])
                    MutableHeaders(scope=message)[REQUEST_ID] = request_id
                case "websocket.close":
                    status = status or 403
            if not counted:
                counted = True
                self._metrics.count(scope, status, time.monotonic() - began)
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._app(scope, receive, send_with_id)
            except Exception:
                _log.exception("request_failed", path=scope["path"][:_MAX_PATH])
                if status:
                    raise  # part of the response is sent: only a broken connection tells the caller
                failure = ErrorResponse(500, ErrorCode.INTERNAL, _UNEXPECTED)
                await failure(scope, receive, send_with_id)
            finally:
                seconds = time.monotonic() - began
                if not counted:
                    self._metrics.count(scope, 0, seconds)
                _record(scope, state, status, seconds * 1000)


def _record(scope: Scope, state: dict[str, Any], status: int, ms: float) -> None:
    client = scope.get("client")
    fields = {
        "method": scope.get("method", "WEBSOCKET"),
        "path": scope["path"][:_MAX_PATH],
        "client": client[0] if client else None,
        "key": state.get("key"),
        "status": status,
        "ms": round(ms, 1),
    }
    refusal: ErrorResponse | None = state.get("refusal")
    if refusal is not None:
        level = logging.WARNING if status >= 500 else logging.INFO
        _log.log(level, "request_refused", **fields, code=refusal.code, reason=refusal.message)
    else:
        quiet = scope["path"].startswith(_QUIET_PATHS)
        _log.log(logging.DEBUG if quiet else logging.INFO, "request", **fields)
