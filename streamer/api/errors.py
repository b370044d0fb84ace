"""Return every failure as `{"error": {"code", "message"}}`, without password or traceback."""

import logging

import redis
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from streamer.errors import ErrorCode, StreamerError
from streamer.media.urls import redact
from streamer.redis_errors import trouble_of

_log = structlog.get_logger("streamer.api")

_MAX_PATH = 200

_UNEXPECTED = "Unexpected error: see the log of `streamer serve`."
_RETRY_AFTER = {429: "5", 503: "5"}
"""Seconds after which a program should try again, by HTTP status."""

_DATABASE_LOST = "The timeline database does not answer: try again later."


class ErrorResponse(JSONResponse):
    """The response to a request that was refused or failed, which logs it.

    The log has no query string: what users ask and search for is theirs.
    """

    def __init__(
        self, status: int, code: ErrorCode, message: str, headers: dict[str, str] | None = None
    ) -> None:
        self._code = code.value
        self._message = redact(message)
        body = {"error": {"code": self._code, "message": self._message}}
        headers = dict(headers or {})
        if status in _RETRY_AFTER:
            headers.setdefault("Retry-After", _RETRY_AFTER[status])
        super().__init__(body, status_code=status, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        level = logging.WARNING if self.status_code >= 500 else logging.INFO
        client = scope.get("client")
        _log.log(
            level,
            "request_refused",
            method=scope.get("method"),
            path=scope["path"][:_MAX_PATH],
            client=client[0] if client else None,
            status=self.status_code,
            code=self._code,
            reason=self._message,
        )
        await super().__call__(scope, receive, send)


def _methods(app: FastAPI, path: str) -> str:
    """Return the methods that `path` accepts; FastAPI itself names those of one route only."""
    found = {
        method.upper()
        for template, calls in app.openapi()["paths"].items()
        if compile_path(template)[0].match(path)
        for method in calls
    }
    return ", ".join(sorted(found))


def install_error_handlers(app: FastAPI) -> None:
    """Register a handler for every kind of failure."""

    @app.exception_handler(StreamerError)
    async def known(_: Request, error: StreamerError) -> JSONResponse:
        return ErrorResponse(error.http_status, error.code, error.message)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            message = f"'{place}' is not a field of this request: remove it."
        else:
            message = f"'{place}': {first['msg']}."
        return ErrorResponse(422, ErrorCode.INVALID_REQUEST, message)

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
    async def redis_refuses(request: Request, error: redis.RedisError) -> JSONResponse:
        trouble = trouble_of(error)
        if not trouble.passes:
            _log.error("redis_refuses", reason=str(error))
        request.app.state.redis_watch.failed(error)
        return ErrorResponse(trouble.error.http_status, trouble.code, trouble.message)

    @app.exception_handler(SQLAlchemyError)
    async def database_lost(_: Request, error: SQLAlchemyError) -> JSONResponse:
        _log.error("database_failed", reason=str(error))
        return ErrorResponse(503, ErrorCode.DATABASE_UNAVAILABLE, _DATABASE_LOST)

    @app.exception_handler(Exception)
    async def unexpected(_: Request, error: Exception) -> JSONResponse:
        return ErrorResponse(500, ErrorCode.INTERNAL, _UNEXPECTED)
