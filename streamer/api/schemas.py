"""Request and response bodies of the API, in addition to the records of `streamer.domain`."""

import re
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from streamer.alert_rule import AlertRule, with_nested_rule
from streamer.domain.error_info import ErrorInfo
from streamer.domain.part import Part
from streamer.domain.query import Query
from streamer.domain.question import Question
from streamer.domain.record import ModelName, Record
from streamer.domain.result import Match, Result
from streamer.domain.sampling import Sampling
from streamer.domain.scope import Scope
from streamer.domain.stream import UNCHANGED, Stream, Transport, Unchanged
from streamer.domain.timestamp import Timestamp
from streamer.domain.watch import Watch
from streamer.incidents.records import (
    MAX_NOTE,
    Acknowledgement,
    Feedback,
    Incident,
    IncidentState,
    PersonName,
)
from streamer.incidents.silences import (
    MAX_MATCHERS,
    MAX_SILENCED_MINUTES,
    Matcher,
    Silence,
)
from streamer.limits import (
    MAX_ANSWER_TOKENS,
    MAX_CLIP_FRAMES,
    MAX_ENDPOINT_REFERENCE,
    MAX_SOURCE,
    MAX_WATCHES,
    MAX_WEBHOOK_URL,
    MAX_WINDOW,
    MIN_WINDOW,
    PROMPT_SCHEMA,
    SOURCE_SCHEMA,
)
from streamer.response_format import ResponseFormat
from streamer.sources.files import UploadedFile
from streamer.times import TIME_SCHEMA
from streamer.webhooks.records import Delivery, Webhook

TimeText = Annotated[str, WithJsonSchema(TIME_SCHEMA)]
"""A time for :func:`streamer.times.parse_time`."""

_DATE = re.compile(r"\s*\d{4}-")


def _refuse_numbers(value: Any) -> Any:
    """Refuse a number, which could be seconds or milliseconds."""
    dated = isinstance(value, datetime) or (isinstance(value, str) and _DATE.match(value))
    if not dated:
        raise PydanticCustomError("time", "write a time such as 2026-01-31T09:30:00Z")
    return value


_WrittenTime = Annotated[Timestamp, BeforeValidator(_refuse_numbers)]

_Source = Annotated[str, Field(json_schema_extra=SOURCE_SCHEMA)]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class RequestBody(Record):
    """Base of the bodies of requests, which take back what a GET returned.

    Fields of the `answer` that a caller cannot set are ignored, whatever they hold; a misspelt
    field is refused.
    """

    answer: ClassVar[type[BaseModel]]

    @classmethod
    def _read_only(cls) -> set[str]:
        fields = {*cls.answer.model_fields, *cls.answer.model_computed_fields}
        return fields - cls.model_fields.keys()

    @model_validator(mode="before")
    @classmethod
    def _ignore_read_only(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        ignored = cls._read_only()
        return {name: value for name, value in fields.items() if name not in ignored}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        for name in sorted(cls._read_only()):
            schema["properties"][name] = {"description": "ignored: it is in answers only"}
        return schema


def _either(one: str, other: str) -> dict[str, Any]:
    """Return the JSON schema of an object that has exactly one of two fields."""
    return {
        "oneOf": [
            {
                "required": [given],
                "properties": {given: {"not": {"type": "null"}}, left_out: {"type": "null"}},
            }
            for given, left_out in ((one, other), (other, one))
        ]
    }


class WatchBody(RequestBody):
    """A standing question. Omitted fields take their values from the settings."""

    answer = Watch
    id: str | None = Field(
        default=None,
        description="in the new list of a stream's watches: the one that this is from now on; "
        "ignored otherwise",
    )

    prompt: str = Field(description="question about every window", json_schema_extra=PROMPT_SCHEMA)
    window: float | None = Field(
        default=None, ge=MIN_WINDOW, le=MAX_WINDOW, description="seconds that one answer is about"
    )
    max_frames: int | None = Field(
        default=None, ge=1, le=MAX_CLIP_FRAMES, description="maximum number of frames per window"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, le=MAX_ANSWER_TOKENS, description="maximum number of tokens per answer"
    )
    response_format: ResponseFormat | None = Field(
        default=None, description="format of the answer; default: text"
    )
    alert: AlertRule | None = Field(
        default=None,
        description="when the answers, which are yes or no, open an incident; default: never",
    )

    model: ModelName | None = Field(
        default=None, description="model that answers; default: that of the stream"
    )

    _nest_rule = model_validator(mode="before")(with_nested_rule)


class _ModelPatch(RequestBody):
    """Base of changes to what may name a model."""

    @property
    def new_model(self) -> str | Unchanged | None:
        """The model from now on; None: the default again."""
        given: str | None = getattr(self, "model", None)
        return given if "model" in self.model_fields_set else UNCHANGED


class WatchPatch(_ModelPatch):
    """Changes to a watch. Omitted fields keep their values."""

    answer = Watch

    prompt: str | None = Field(
        default=None, description="question about every window", json_schema_extra=PROMPT_SCHEMA
    )
    window: float | None = Field(
        default=None, ge=MIN_WINDOW, le=MAX_WINDOW, description="seconds that one answer is about"
    )
    max_frames: int | None = Field(
        default=None, ge=1, le=MAX_CLIP_FRAMES, description="maximum number of frames per window"
    )
    max_tokens: int | None = Field(
        default=None, ge=1, le=MAX_ANSWER_TOKENS, description="maximum number of tokens per answer"
    )
    response_format: ResponseFormat | None = Field(default=None, description="format of the answer")
    alert: AlertRule | None = Field(
        default=None,
        description="fields of the rule to change; a watch without one becomes an alert",
    )
    model: ModelName | None = Field(
        default=None, description="model that answers; null: that of the stream"
    )


class StreamBody(RequestBody):
    """A stream to attach: `url` or `file`."""

    model_config = RequestBody.model_config | {"json_schema_extra": _either("url", "file")}

    answer = Stream

    url: _Source | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_SOURCE,
        description="URL, or path of a file on the server",
    )
    file: str | None = Field(default=None, description="id of an uploaded file")
    name: str | None = Field(
        default=None, pattern=_NAME, description="unique name; default: made from the URL"
    )
    sampling: Sampling | None = Field(
        default=None, description="how frames are sampled; default: the setting `fps`"
    )
    transport: Transport = Field(default="auto", description="transport of RTSP")
    watches: list[WatchBody] | None = Field(
        default=None,
        max_length=MAX_WATCHES,
        description="standing questions; default: describe the scene; []: none",
    )
    history: float | None = Field(
        default=None,
        ge=0,
        le=90 * 86400,
        description="seconds that frames, thinned with age, are kept; default: the setting",
    )
    retention_days: float | None = Field(
        default=None,
        gt=0,
        le=36_500,
        description="days that results are kept; default: the setting",
    )
    paused: bool = Field(default=False, description="attach it without reading it yet")
    probe: bool = Field(
        default=True, description="open the source and decode one frame before attaching it"
    )
    live: bool | None = Field(
        default=None,
        description="true: the end of the source is a lost connection; false: it is a recording; "
        "default: detected when the source is opened",
    )
    model: ModelName | None = Field(
        default=None, description="model of the watches and queries that name none"
    )
    endpoint_reference: str | None = Field(
        default=None,
        max_length=MAX_ENDPOINT_REFERENCE,
        description="what POST /v1/discovery calls the camera; a stream that is attached from it "
        "with the same path is returned, with the new address",
    )


class DiscoveryBody(Record):
    """A search for cameras."""

    address: str | None = Field(
        default=None,
        min_length=1,
        max_length=255,
        description="host, or private network such as 192.168.1.0/24; default: the networks of "
        "this machine, by multicast",
    )
    user: str | None = Field(default=None, max_length=256, description="user of the cameras")
    password: str | None = Field(
        default=None, max_length=256, description="password of the cameras; it is not stored"
    )


class ProbeBody(Record):
    """A source to try."""

    url: _Source = Field(
        min_length=1, max_length=MAX_SOURCE, description="URL, or path of a file on the server"
    )
    transport: Transport = Field(default="auto", description="transport of RTSP")


class StreamPatch(_ModelPatch):
    """Changes to a stream. Omitted fields keep their values."""

    answer = Stream

    url: _Source | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_SOURCE,
        description="new URL of a live stream, including the password; the URL that a GET returned "
        "changes nothing",
    )
    name: str | None = Field(default=None, pattern=_NAME, description="new unique name")
    sampling: Sampling | None = Field(default=None, description="how frames are sampled")
    transport: Transport | None = Field(default=None, description="transport of RTSP")
    watches: list[WatchBody] | None = Field(
        default=None,
        max_length=MAX_WATCHES,
        description="new list of all watches; those that have the id of one, or ask the same as "
        "before, continue",
    )
    history: float | None = Field(
        default=None,
        ge=0,
        le=90 * 86400,
        description="seconds that frames are kept; 0: no history",
    )
    retention_days: float | None = Field(
        default=None, gt=0, le=36_500, description="days that results are kept"
    )
    paused: bool | None = Field(default=None, description="true: pause; false: resume")
    probe: bool = Field(
        default=True, description="open a new URL and decode one frame before using it"
    )
    model: ModelName | None = Field(
        default=None,
        description="model of the watches and queries that name none; null: the default model",
    )


_MISSING: Any = Field(
    default_factory=list,
    description="programs and servers that do not work, so that what is listed may be out of date",
)


_NEXT: Any = Field(default=None, description="`cursor` of the next page; null: there are no more")


class QuestionBody(RequestBody, Question):
    """A question about a stream now or, with `since`, about a past range.

    With `streams`, `file`, `url` or `window` it is asked of several windows, one by one, and the
    answer sums up what they show.
    """

    answer = Query


class SummaryBody(Record):
    """The range of a stream to sum up."""

    since: TimeText = Field(
        default="-1d", description="start of the range: RFC 3339 or relative such as -10m"
    )
    until: TimeText = Field(default="now", description="end of the range")
    model: ModelName | None = Field(
        default=None, description="model that sums up; default: the default model"
    )


class StreamList(Record):
    """Attached streams, oldest first."""

    streams: list[Stream]
    next_cursor: str | None = _NEXT
    missing: list[Part] = _MISSING


class WatchList(Record):
    """The watches of one stream, oldest first."""

    watches: list[Watch]
    next_cursor: str | None = _NEXT


class FileList(Record):
    """Uploaded files, newest first."""

    files: list[UploadedFile]
    next_cursor: str | None = _NEXT


class QueryList(Record):
    """Queries, newest first."""

    queries: list[Query]
    next_cursor: str | None = _NEXT


class ResultPage(Record):
    """Results, newest first; by meaning the nearest first. Pass `next_cursor` as `cursor` to get
    the next ones."""

    results: list[Result]
    next_cursor: str | None
    matches: list[Match] | None = Field(
        default=None,
        description="with mode=meaning or verify=true: for each result, in their order, how well "
        "it fits",
    )
    missing: list[Part] = _MISSING


class IncidentList(Record):
    """Incidents, newest first. Pass `next_cursor` as `cursor` to get older ones."""

    incidents: list[Incident]
    next_cursor: str | None


class FeedbackBody(RequestBody):
    """Whether an alert was right."""

    answer = Feedback

    verdict: Literal["right", "wrong", "unsure"]
    note: str | None = Field(default=None, max_length=MAX_NOTE)


class IncidentPatch(RequestBody):
    """What people say about an incident. Omitted fields change nothing."""

    answer = Incident

    seen: bool | None = Field(default=None, description="true: it has been seen")
    acknowledged: bool | Acknowledgement | None = Field(
        default=None,
        description="true: acknowledge the incident; what a GET returned changes nothing",
    )
    note: str | None = Field(
        default=None, max_length=MAX_NOTE, description="note of the acknowledgement"
    )
    feedback: FeedbackBody | None = Field(default=None, description="whether it was right")
    state: IncidentState | None = Field(
        default=None, description="resolved: it is over; or the state that it has"
    )
    by: PersonName | None = Field(
        default=None, description="who says so; default: the name of the key"
    )


class SilenceBody(RequestBody):
    """Incidents that are not to be delivered."""

    model_config = RequestBody.model_config | {"json_schema_extra": _either("ends_at", "minutes")}

    answer = Silence

    matchers: list[Matcher] = Field(
        min_length=1, max_length=MAX_MATCHERS, description="all of them must be fulfilled"
    )
    starts_at: _WrittenTime | None = Field(default=None, description="default: now")
    ends_at: _WrittenTime | None = None
    minutes: float | None = Field(
        default=None, ge=0.01, le=MAX_SILENCED_MINUTES, description="in place of `ends_at`"
    )
    reason: str = Field(default="", max_length=MAX_NOTE)
    created_by: PersonName | None = None

    @model_validator(mode="after")
    def _has_one_end(self) -> Self:
        if (self.ends_at is None) == (self.minutes is None):
            raise PydanticCustomError("silence", "give either 'ends_at' or 'minutes'")
        return self


class SilenceList(Record):
    """Silences that have not ended."""

    silences: list[Silence]
    next_cursor: str | None = _NEXT


ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "rate_limit_error",
    "server_error",
]


class ErrorDetail(ErrorInfo):
    """An error of the API: its code, its type, and the request that it belongs to."""

    type: ErrorType = Field(description="what went wrong, as OpenAI's clients call it")
    param: str | None = Field(description="dotted path of the field or parameter that is wrong")
    request_id: str = Field(description="the `x-request-id` of the response")


def _describe_type(schema: dict[str, Any]) -> None:
    from streamer.events import TYPE_PATTERN  # needs Redis's client, which HTTP clients do without

    schema["pattern"] = f"^({TYPE_PATTERN})$"


_Type = Annotated[str, Field(json_schema_extra=_describe_type)]
_TYPES: Any = Field(
    default=None,
    min_length=1,
    max_length=20,
    description="types of events, such as incident.*; null: all",
)
_STREAMS: Any = Field(
    default=None,
    min_length=1,
    max_length=100,
    description="ids or names of streams; null: all, and events of no stream",
)
_DESCRIPTION: Any = Field(default=None, max_length=500, description="a note for people")


_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
_WebhookUrl = Annotated[
    str,
    Field(
        json_schema_extra={
            "pattern": f"^https?://[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?(:{_PORT})?"
            '([/?][!"$-~]*)?$'
        }
    ),
]


class WebhookBody(RequestBody):
    """A program to send events to."""

    answer = Webhook

    url: _WebhookUrl = Field(
        min_length=1, max_length=MAX_WEBHOOK_URL, description="http:// or https:// address"
    )
    types: list[_Type] | None = _TYPES
    streams: list[str] | None = _STREAMS
    description: str | None = _DESCRIPTION
    enabled: bool = True


class WebhookPatch(RequestBody):
    """Changes to a webhook. Omitted fields keep their values."""

    answer = Webhook

    url: _WebhookUrl | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_WEBHOOK_URL,
        description="http:// or https:// address",
    )
    types: list[_Type] | None = _TYPES
    streams: list[str] | None = _STREAMS
    description: str | None = _DESCRIPTION
    enabled: bool | None = None


class NewWebhook(Webhook):
    """A webhook that was added, and its secret, which is not shown again."""

    secret: str


class WebhookList(Record):
    """All webhooks, oldest first."""

    webhooks: list[Webhook]
    next_cursor: str | None = _NEXT


class DeliveryPage(Record):
    """Deliveries, newest first. Pass `next_cursor` as `cursor` to get older ones."""

    deliveries: list[Delivery]
    next_cursor: str | None


class ErrorBody(Record):
    """Body of every failed response."""

    error: ErrorDetail


class SessionBody(Record):
    """The key with which a browser signs in."""

    key: str = Field(min_length=1, max_length=MAX_SOURCE, description="an API key")


class Session(Record):
    """Who calls, and what the caller may do."""

    key: str | None = Field(description="name of the key; null if none is needed")
    scopes: list[Scope]


class Health(Record):
    """State of the API process."""

    status: str = "ok"


class Readiness(Record):
    """State of the installation: of each program and server that it needs."""

    status: Literal["ready", "not ready"]
    parts: list[Part]
