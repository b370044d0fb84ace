"""Define the records of queries: questions asked once, and how far they are."""

from typing import Any, Self

from pydantic import Field

from streamer.domain.record import Record
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.timestamp import Timestamp
from streamer.open_enum import OpenEnum
from streamer.response_format import ResponseFormat, TextFormat


class QueryStatus(OpenEnum):
    """Progress of a query; the last three values are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class QueryProgress(Record):
    """How far a query about several windows is."""

    windows: int | None = Field(description="windows in all; null while that is not known")
    done: int = Field(description="windows that have an answer, or will have none")
    unknown: int = Field(description="of these, windows that have none")


class Query(Record):
    """A one-off question and, when it is answered, its result."""

    id: str
    status: QueryStatus
    stream_id: str
    stream_name: str
    prompt: str
    start: Timestamp
    end: Timestamp
    created_at: Timestamp
    result: Result | None = None
    stream: str | None = Field(default=None, description="the stream that was asked about: its id")
    streams: list[str] | None = Field(
        default=None, description="the streams that were asked about: their ids"
    )
    file: str | None = Field(default=None, description="the uploaded file that was asked about")
    url: str | None = Field(
        default=None, description="the recording that was asked about, without its password"
    )
    window: float | None = Field(
        default=None,
        description="seconds that one answer is about; null: all, or as the service chose",
    )
    progress: QueryProgress | None = Field(
        default=None, description="of a query about several windows, while it is known"
    )
    since: Timestamp | None = Field(default=None, description="start of the range; null: now")
    until: Timestamp | None = Field(default=None, description="end of the range; null: now")
    max_frames: int | None = Field(default=None, description="maximum number of frames")
    max_tokens: int | None = Field(default=None, description="maximum tokens of the answer")
    response_format: ResponseFormat = Field(
        default_factory=TextFormat, description="format of the answer"
    )
    stale_ok: bool = Field(default=False, description="whether an old frame may be answered from")

    @classmethod
    def of(cls, request: ClipRequest, **asked: Any) -> Self:
        """Build the record of a request that has just been submitted.

        `asked` are the fields of the question that the request does not have.
        """
        fields: dict[str, Any] = {
            "id": request.id,
            "status": QueryStatus.QUEUED,
            "stream_id": request.stream_id,
            "stream_name": request.stream_name,
            "prompt": request.prompt,
            "start": request.start,
            "end": request.end,
            "created_at": request.created_at,
            "stream": request.stream_id,
            "max_tokens": request.max_tokens,
            "response_format": request.response_format,
        }
        return cls(**fields | asked)
