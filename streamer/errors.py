"""Errors that users see: a stable code, a message that says what to do, an HTTP status."""

from collections.abc import Iterator
from contextlib import contextmanager

from streamer.open_enum import OpenEnum


class ErrorCode(OpenEnum):
    """Stable error codes. Programs match on the code; people read the message."""

    STREAM_CONNECTION_FAILED = "STREAM_CONNECTION_FAILED"
    STREAM_AUTH_FAILED = "STREAM_AUTH_FAILED"
    STREAM_TLS_FAILED = "STREAM_TLS_FAILED"
    STREAM_TIMEOUT = "STREAM_TIMEOUT"
    STREAM_NOT_FOUND = "STREAM_NOT_FOUND"
    STREAM_CODEC_UNSUPPORTED = "STREAM_CODEC_UNSUPPORTED"
    STREAM_NO_VIDEO = "STREAM_NO_VIDEO"
    STREAM_URL_FORBIDDEN = "STREAM_URL_FORBIDDEN"
    STREAM_CLOCK_WRONG = "STREAM_CLOCK_WRONG"
    STREAM_STALE = "STREAM_STALE"
    STREAM_ENDED_EARLY = "STREAM_ENDED_EARLY"
    STREAM_LEVELS_SCALED = "STREAM_LEVELS_SCALED"
    FRAMES_KEPT_SHORT = "FRAMES_KEPT_SHORT"

    INVALID_REQUEST = "INVALID_REQUEST"
    NOT_FOUND = "NOT_FOUND"
    METHOD_NOT_ALLOWED = "METHOD_NOT_ALLOWED"
    REQUEST_TOO_LARGE = "REQUEST_TOO_LARGE"
    UNAUTHORIZED = "UNAUTHORIZED"
    FORBIDDEN = "FORBIDDEN"
    RATE_LIMITED = "RATE_LIMITED"
    IDEMPOTENCY_MISMATCH = "IDEMPOTENCY_MISMATCH"
    IDEMPOTENCY_IN_PROGRESS = "IDEMPOTENCY_IN_PROGRESS"
    UNKNOWN_KEY = "UNKNOWN_KEY"
    UNKNOWN_STREAM = "UNKNOWN_STREAM"
    UNKNOWN_WATCH = "UNKNOWN_WATCH"
    UNKNOWN_QUERY = "UNKNOWN_QUERY"
    UNKNOWN_WEBHOOK = "UNKNOWN_WEBHOOK"
    UNKNOWN_DELIVERY = "UNKNOWN_DELIVERY"
    WEBHOOK_URL_FORBIDDEN = "WEBHOOK_URL_FORBIDDEN"
    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    UNKNOWN_FILE = "UNKNOWN_FILE"
    UPLOAD_CONFLICT = "UPLOAD_CONFLICT"
    STORAGE_FULL = "STORAGE_FULL"
    UNKNOWN_INCIDENT = "UNKNOWN_INCIDENT"
    UNKNOWN_SILENCE = "UNKNOWN_SILENCE"
    NAME_TAKEN = "NAME_TAKEN"
    TOO_MANY_QUERIES = "TOO_MANY_QUERIES"
    TOO_MANY_LISTENERS = "TOO_MANY_LISTENERS"
    PROMPT_EMPTY = "PROMPT_EMPTY"
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    NO_FRAMES = "NO_FRAMES"
    FRAMES_EXPIRED = "FRAMES_EXPIRED"
    FRAME_DAMAGED = "FRAME_DAMAGED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"
    REDIS_UNAVAILABLE = "REDIS_UNAVAILABLE"
    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    API_UNAVAILABLE = "API_UNAVAILABLE"
    SEARCH_UNAVAILABLE = "SEARCH_UNAVAILABLE"
    NO_WORKER = "NO_WORKER"
    WORKER_LOST = "WORKER_LOST"
    JOB_LOST = "JOB_LOST"
    MODEL_FAILED = "MODEL_FAILED"
    FORM_IGNORED = "FORM_IGNORED"
    MODEL_SERVER_UNAVAILABLE = "MODEL_SERVER_UNAVAILABLE"
    MODEL_SERVER_REFUSES = "MODEL_SERVER_REFUSES"
    FORM_UNFINISHED = "FORM_UNFINISHED"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    SETTINGS_INVALID = "SETTINGS_INVALID"
    SECRET_UNREADABLE = "SECRET_UNREADABLE"
    RECORD_UNREADABLE = "RECORD_UNREADABLE"
    REDIS_FULL = "REDIS_FULL"
    ARCHIVE_UNAVAILABLE = "ARCHIVE_UNAVAILABLE"
    DELIVERY_FAILED = "DELIVERY_FAILED"
    INTERNAL = "INTERNAL"


_STATUS = {
    ErrorCode.INVALID_REQUEST: 422,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.METHOD_NOT_ALLOWED: 405,
    ErrorCode.REQUEST_TOO_LARGE: 413,
    ErrorCode.PROMPT_EMPTY: 422,
    ErrorCode.PROMPT_TOO_LONG: 422,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.RATE_LIMITED: 429,
    ErrorCode.IDEMPOTENCY_MISMATCH: 422,
    ErrorCode.IDEMPOTENCY_IN_PROGRESS: 409,
    ErrorCode.UNKNOWN_KEY: 404,
    ErrorCode.UNKNOWN_STREAM: 404,
    ErrorCode.UNKNOWN_WATCH: 404,
    ErrorCode.UNKNOWN_QUERY: 404,
    ErrorCode.UNKNOWN_WEBHOOK: 404,
    ErrorCode.UNKNOWN_DELIVERY: 404,
    ErrorCode.WEBHOOK_URL_FORBIDDEN: 403,
    ErrorCode.UNKNOWN_MODEL: 404,
    ErrorCode.UNKNOWN_FILE: 404,
    ErrorCode.UPLOAD_CONFLICT: 409,
    ErrorCode.STORAGE_FULL: 507,
    ErrorCode.UNKNOWN_INCIDENT: 404,
    ErrorCode.UNKNOWN_SILENCE: 404,
    ErrorCode.NAME_TAKEN: 409,
    ErrorCode.TOO_MANY_QUERIES: 429,
    ErrorCode.TOO_MANY_LISTENERS: 429,
    ErrorCode.NO_FRAMES: 409,
    ErrorCode.STREAM_STALE: 409,
    ErrorCode.FRAMES_EXPIRED: 410,
    ErrorCode.STREAM_URL_FORBIDDEN: 403,
    ErrorCode.REDIS_UNAVAILABLE: 503,
    ErrorCode.DATABASE_UNAVAILABLE: 503,
    ErrorCode.API_UNAVAILABLE: 503,
    ErrorCode.SEARCH_UNAVAILABLE: 501,
    ErrorCode.NO_WORKER: 503,
    ErrorCode.WORKER_LOST: 503,
    ErrorCode.JOB_LOST: 503,
    ErrorCode.TIMEOUT: 504,
    ErrorCode.MODEL_FAILED: 500,
    ErrorCode.MODEL_SERVER_UNAVAILABLE: 503,
    ErrorCode.MODEL_SERVER_REFUSES: 503,
    ErrorCode.OUT_OF_MEMORY: 503,
    ErrorCode.SETTINGS_INVALID: 500,
    ErrorCode.SECRET_UNREADABLE: 500,
    ErrorCode.RECORD_UNREADABLE: 500,
    ErrorCode.REDIS_FULL: 503,
    ErrorCode.ARCHIVE_UNAVAILABLE: 503,
    ErrorCode.DELIVERY_FAILED: 502,
    ErrorCode.INTERNAL: 500,
}


class StreamerError(Exception):
    """A failure with a stable `code` and a `message` for users, which never holds a password.

    `param` is the dotted path of the field that is wrong, such as `watches.0.window`. `request_id`
    is that of the call of the API that failed, by which the server's log tells more.
    `retry_after` is the number of seconds after which the same request may succeed, if known.
    """

    retry_after: float | None = None

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        param: str | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.request_id = request_id

    @property
    def http_status(self) -> int:
        """HTTP status of this failure; 422 for the errors of a stream."""
        return _STATUS.get(self.code, 422)


@contextmanager
def about(param: str) -> Iterator[None]:
    """Name the field that a StreamerError raised inside is about: `param`, then its own field."""
    try:
        yield
    except StreamerError as error:
        error.param = f"{param}.{error.param}" if error.param else param
        raise


class Superseded(Exception):  # noqa: N818 - nothing is wrong with what was written
    """Raised by a write for a stream that another worker has taken over, or that has ended.

    Nothing was written. The run that gets it stops at once, and records nothing.
    """
