"""Define the record of an error."""

from streamer.domain.record import Record
from streamer.errors import ErrorCode


class ErrorInfo(Record):
    """An error: a stable code, and one sentence that says what to do."""

    code: ErrorCode
    message: str
