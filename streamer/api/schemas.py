"""Bodies that the API takes and gives, beside the records of `streamer.domain`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from streamer.answer_form import AnswerForm
from streamer.domain import (
    MAX_WATCHES,
    ErrorInfo,
    Query,
    Record,
    Result,
    Sampling,
    Stream,
    Transport,
    Watch,
)
from streamer.validation import validated


class TextFormat(Record):
    """Free text."""

    type: Literal["text"] = "text"


class ChoiceFormat(Record):
    """One of some strings, word for word."""

    type: Literal["choice"]
    choices: list[str] = Field(min_length=1)


class JsonFormat(Record):
    """JSON that fits a schema; `data.json` of the result holds it parsed."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any]


ResponseFormat = Annotated[TextFormat | ChoiceFormat | JsonFormat, Field(discriminator="type")]


def form_of(wanted: ResponseFormat | None) -> AnswerForm | None:
    """A `response_format` as the records have it; None when nothing was said.

    Raises StreamerError(INVALID_REQUEST).
    """
    match wanted:
        case TextFormat():
            return AnswerForm()
        case ChoiceFormat():
            return validated(AnswerForm, output="choice", choices=wanted.choices)
        case JsonFormat():
            return validated(AnswerForm, output="json", json_schema=wanted.json_schema)
    return None


class WatchBody(Record):
    """A standing question; what is left out comes from the settings."""

    prompt: str
    window: float | None = Field(default=None, gt=0, le=3600, description="seconds")
    max_frames: int | None = Field(default=None, ge=1, le=256)
    max_tokens: int | None = Field(default=None, ge=1, le=4096)
    response_format: ResponseFormat | None = None


class WatchPatch(Record):
    """What to change of a watch; what is left out stays as it is."""

    prompt: str | None = None
    window: float | None = Field(default=None, gt=0, le=3600, description="seconds")
    max_frames: int | None = Field(default=None, ge=1, le=256)
    max_tokens: int | None = Field(default=None, ge=1, le=4096)
    response_format: ResponseFormat | None = None


class StreamBody(Record):
    """What to attach."""

    url: str = Field(min_length=1, max_length=4096, description="URL, or a file on the server")
    name: str | None = Field(default=None, description="default: from the URL")
    sampling: Sampling | None = None
    transport: Transport = Field(default="auto", description="of RTSP")
    watches: list[WatchBody] | None = Field(
        default=None,
        max_length=MAX_WATCHES,
        description="default: a caption every window; []: none",
    )
    history: float | None = Field(
        default=None, description="seconds that frames, thinned with age, are kept in Redis"
    )
    probe: bool = Field(default=True, description="try the source before attaching it")


class StreamPatch(Record):
    """What to change of a stream; what is left out stays as it is."""

    url: str | None = Field(
        default=None, min_length=1, max_length=4096, description="of a live stream, with password"
    )
    name: str | None = None
    sampling: Sampling | None = None
    transport: Transport | None = Field(default=None, description="of RTSP")
    watches: list[WatchBody] | None = Field(
        default=None,
        max_length=MAX_WATCHES,
        description="instead of all there are; those that ask the same go on",
    )
    history: float | None = Field(default=None, description="seconds, as when attaching; 0: none")
    paused: bool | None = None
    probe: bool = Field(default=True, description="try a new URL before it is taken")


class QueryBody(Record):
    """A question about a stream now or, with `since`, about a past range."""

    prompt: str
    stream: str | None = Field(
        default=None, description="id or name; may be left out when one stream is attached"
    )
    since: str | None = Field(default=None, description="RFC 3339, or relative such as -10m")
    until: str | None = Field(default=None, description="likewise; default: now")
    max_frames: int | None = Field(default=None, ge=1, le=256)
    max_tokens: int | None = Field(default=None, ge=1, le=4096)
    response_format: ResponseFormat | None = None


class StreamList(Record):
    """All attached streams, oldest first."""

    streams: list[Stream]


class WatchList(Record):
    """The watches of one stream, oldest first."""

    watches: list[Watch]


class QueryList(Record):
    """Queries, newest first."""

    queries: list[Query]


class ResultPage(Record):
    """Results, newest first; pass `next_cursor` as `cursor` to get older ones."""

    results: list[Result]
    next_cursor: str | None


class ErrorBody(Record):
    """What every failure looks like."""

    error: ErrorInfo


class Health(Record):
    """The process is alive."""

    status: str = "ok"
