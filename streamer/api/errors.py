"""Return every failure in one shape, without password or traceback."""

import math
from collections.abc import Sequence
from typing import Any

import redis
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from streamer.api.schemas import ErrorType
from streamer.errors import ErrorCode, StreamerError
from streamer.media.urls import redact
from streamer.redis_client.errors import trouble_of

_log = structlog.get_logger("streamer.api")

_RETRY_AFTER = {429: "5", 503: "5"}
"""Seconds after which a program should try again, by HTTP status."""

_PASSES = {408, 429, 503, 504}
"""Statuses of failures that may be gone at the next try."""

_MAX_NAME = 80
"""Characters of the name of a field that an error shows."""

_DATABASE_LOST = "The timeline database does not answer: try again later."


class InvalidIs400(APIRoute):
    """A route that answers an invalid request with 400, as clients of OpenAI expect, not with 422.

    Pass it as `route_class` of an `APIRouter`.
    """


class ErrorResponse(JSONResponse):
    """The response to a request that was refused or failed; the access log shows its reason.

    `param` is the dotted path of the field or parameter that is wrong. `x-should-retry` tells
    clients of OpenAI that the same request would fail again.
    """

    def __init__(
        self,
        status: int,
        code: ErrorCode,
        message: str,
        headers: dict[str, str] | None = None,
        *,
        param: str | None = None,
    ) -> None:
        self.code = code.value
        self.message = redact(message)
        # Not as an `ErrorBody`, which refuses texts that JSON can hold but a database cannot.
        detail = {
            "code": self.code,
            "message": self.message,
            "type": _type_of(status),
            "param": redact(param) if param is not None else None,
            "request_id": structlog.contextvars.get_contextvars().get("request_id", ""),
        }
        headers = dict(headers or {})
        if status in _RETRY_AFTER:
            headers.setdefault("Retry-After", _RETRY_AFTER[status])
        if status not in _PASSES and "Retry-After" not in headers:
            headers["x-should-retry"] = "false"
        super().__init__({"error": detail}, status_code=status, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        scope.setdefault("state", {})["refusal"] = self
        await super().__call__(scope, receive, send)


def _type_of(status: int) -> ErrorType:
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 404 | 410:
            return "not_found_error"
        case 429:
            return "rate_limit_error"
        case _:
            return "server_error" if status >= 500 else "invalid_request_error"


def _status_at(request: Request, status: int) -> int:
    """Return the status that the route of the request has for invalid requests."""
    return 400 if status == 422 and isinstance(request.scope.get("route"), InvalidIs400) else status


def _path_in(body: Any, location: Sequence[int | str]) -> str:
    """Return the dotted path of a field in the `body` of a request, '' for the body itself.

    Pydantic's `location` also names the branches of unions and validators, which no caller sent.
    """
    path: list[str] = []
    value = body
    for number, part in enumerate(location, 1):
        known = isinstance(value, dict) and part in value
        if known or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            path.append(str(part)[:_MAX_NAME])
            value = value[part]
        elif number == len(location) and isinstance(value, dict):
            path.append(str(part)[:_MAX_NAME])  # a missing field
    return ".".join(path)


def _param_of(error: dict[str, Any], body: Any) -> str | None:
    source, *rest = error["loc"]
    if source != "body":
        return ".".join(str(part) for part in rest) or None
    return _path_in(body, rest) or None


def _methods(app: FastAPI, path: str) -> str:
    """Return the methods that `path` accepts; FastAPI itself names those of one route only."""
    found = {
        method.upper()
        for template, calls in app.openapi()["paths"].items()
        if compile_path(template)[0].match(path)
        for method in calls
    }
    return ", ".join(sorted(found))


def redis_refusal(app: FastAPI, error: redis.RedisError) -> ErrorResponse:
    """Return the response to a request that Redis refused, and watch for the end of the outage."""
    trouble = trouble_of(error)
    if not trouble.passes:
        _log.error("redis_refuses", reason=str(error))
    app.state.redis_watch.failed(error)
    return ErrorResponse(trouble.error.http_status, trouble.code, trouble.message)


def install_error_handlers(app: FastAPI) -> None:
    """Register a handler for every kind of failure."""

    @app.exception_handler(StreamerError)
    async def known(request: Request, error: StreamerError) -> JSONResponse:
        status = _status_at(request, error.http_status)
        known = error.retry_after
        wait = {} if known is None else {"Retry-After": str(max(1, math.ceil(known)))}
        return ErrorResponse(status, error.code, error.message, wait, param=error.param)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        param = _param_of(first, error.body)
        place = param or ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            message = f"'{place}' is not a field of this request: remove it."
        else:
            message = f"'{place}': {first['msg']}."
        status = _status_at(request, 422)
        return ErrorResponse(status, ErrorCode.INVALID_REQUEST, message, param=param)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers or {})
        code, message = ErrorCode.INVALID_REQUEST, str(error.detail)
        if error.status_code == 404:
            code = ErrorCode.NOT_FOUND
            message = f"{request.url.path} does not exist: see /docs for the paths."
        elif error.status_code == 413:
            code = ErrorCode.REQUEST_TOO_LARGE
        elif error.status_code == 405:
            code = ErrorCode.METHOD_NOT_ALLOWED
            methods = _methods(app, request.url.path) or headers.get("Allow", "GET")
            headers["Allow"] = methods
            message = f"{request.url.path} accepts {methods}, not {request.method}: see /docs."
        return ErrorResponse(error.status_code, code, message, headers)

    @app.exception_handler(redis.RedisError)
    async def redis_refuses(_: Request, error: redis.RedisError) -> JSONResponse:
        return redis_refusal(app, error)

    @app.exception_handler(SQLAlchemyError)
    async def database_lost(_: Request, error: SQLAlchemyError) -> JSONResponse:
        _log.error("database_failed", reason=str(error))
        return ErrorResponse(503, ErrorCode.DATABASE_UNAVAILABLE, _DATABASE_LOST)
