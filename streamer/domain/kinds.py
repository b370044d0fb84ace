"""Name the kinds of requests and of results."""

from enum import StrEnum

from streamer.open_enum import OpenEnum


class RequestKind(StrEnum):
    """Kind of a request, which decides its queue."""

    QUERY = "query"
    WATCH = "watch"
    FILE = "file"


class ResultKind(OpenEnum):
    """Kind of a result."""

    CAPTION = "caption"
    ANSWER = "answer"
    ALERT = "alert"
    SUMMARY = "summary"
    ERROR = "error"
