"""Define the records of the service: stream, watch, frame, clip, query, result.

Times inside records are timezone-aware UTC datetimes (RFC 3339 in JSON). Frame times are float
seconds since the Unix epoch, because they are often sorted, compared and subtracted.
"""

import json
import re
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import Enum, StrEnum
from math import isfinite
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    computed_field,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from nvila_core.errors import is_unicode
from nvila_core.resolution.policy import Measures, subsample
from streamer import clock
from streamer.alert_rule import ALERT_CHOICES, AlertRule
from streamer.errors import ErrorCode, StreamerError
from streamer.limits import (
    MAX_ANSWER_TOKENS,
    MAX_CLIP_FRAMES,
    MAX_ENDPOINT_REFERENCE,
    MAX_LOGPROBS,
    MAX_MODEL_NAME,
    MAX_WATCHES,
    MAX_WINDOW,
)
from streamer.open_enum import OpenEnum
from streamer.response_format import (
    ChoiceFormat,
    ResponseFormat,
    TextFormat,
    with_response_format,
)
from streamer.times import as_utc
from streamer.yes_or_no import MIN_YES_NO_TOKENS, SPELLED_FORMAT


def new_id(prefix: str) -> str:
    """Return a new id such as `str_9f2c4e1ab07d8a36`: its kind, then 64 random bits; URL-safe."""
    return f"{prefix}_{secrets.token_hex(8)}"


def utc_now() -> datetime:
    """Return the current time, by the clock that this process shares, as an aware UTC datetime."""
    return to_datetime(clock.shared().time())


def to_datetime(epoch: float) -> datetime:
    """Convert seconds since the Unix epoch to an aware UTC datetime."""
    return datetime.fromtimestamp(epoch, UTC)


def _as_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else as_utc(value)


def rfc3339(value: datetime) -> str:
    """Format in RFC 3339 with milliseconds and `Z`: of fixed width, so that text sorts by time."""
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[
    datetime, AfterValidator(_as_utc), PlainSerializer(rfc3339, return_type=str, when_used="json")
]


def unstorable(value: Any) -> str | None:
    """Return why JSON, Redis or a database cannot store `value`, None where they can."""
    found: list[Any] = [value]
    while found:
        item = found.pop()
        if item is None or item is True or item is False:
            continue
        if isinstance(item, str):
            if "\0" in item:
                return "the text has a NUL character: remove it"
            if not item.isascii() and not is_unicode(item):
                return "the text has half of a character (a lone surrogate): send it as UTF-8"
        elif isinstance(item, float):
            if not isfinite(item):
                return "the number is not finite: give a number"
        elif isinstance(item, int) and not isinstance(item, bool):
            if abs(item) >= 2**63:
                return "the number is too large: give one below 2**63"
        elif isinstance(item, dict):
            found += [*item.keys(), *item.values()]
        elif isinstance(item, list | tuple):
            found += item
    return None


_SUSPECT = re.compile(rb"\\u0000|\\u[dD][89a-fA-F]|\xed[\xa0-\xbf]|NaN|Inf|[eE]\+?\d{3}|\d{19}")
"""What JSON has where :func:`unstorable` may refuse it; to look at each value takes longer."""

_STORED = {"stored": True}
"""Context in which fields that have been stored are read, which have nothing suspect."""


class Record(BaseModel):
    """Base of all records.

    Unknown fields are errors, so that no misspelt field goes unnoticed, except where a stored
    record is read: another release may have written it.
    """

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, fields: Any, info: ValidationInfo) -> Any:
        """Refuse what JSON, Redis or a database cannot store, wherever in the fields it is."""
        if info.context == _STORED:
            return fields
        reason = unstorable(fields)
        if reason is not None:
            raise PydanticCustomError("unstorable", "{reason}", {"reason": reason})
        return fields

    @classmethod
    def read(cls, stored: bytes | str | dict[str, Any]) -> Self:
        """Return a stored record, as JSON or as its fields; pass over unknown fields.

        Raises StreamerError(RECORD_UNREADABLE).
        """
        try:
            if isinstance(stored, dict):
                return cls.model_validate(stored, extra="ignore", context=_STORED)
            text = stored if isinstance(stored, bytes) else stored.encode(errors="surrogatepass")
            context = None if _SUSPECT.search(text) else _STORED
            return cls.model_validate_json(stored, extra="ignore", context=context)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise StreamerError(
                ErrorCode.RECORD_UNREADABLE,
                f"A stored {cls.__name__} cannot be read ({place + ': ' if place else ''}"
                f"{first['msg']}): if a newer release wrote it, upgrade this program.",
            ) from None

    @classmethod
    def read_in_part(cls, stored: bytes | str | dict[str, Any], **defaults: Any) -> Self:
        """Return the readable fields of a record that :meth:`read` refuses.

        `defaults` are the values of required fields that cannot be read.
        """
        try:
            fields = stored if isinstance(stored, dict) else json.loads(stored)
        except (ValueError, RecursionError):
            fields = None
        readable: dict[str, Any] = dict(fields) if isinstance(fields, dict) else {}
        while True:
            try:
                return cls.model_validate(defaults | readable, extra="ignore")
            except ValidationError as error:
                refused = {each["loc"][0] for each in error.errors() if each["loc"]}
                if not readable:
                    raise
                kept = {name: value for name, value in readable.items() if name not in refused}
                readable = kept if len(kept) < len(readable) else {}


class Unchanged(Enum):
    """Stands for a value that an edit leaves as it is, where None is a value too."""

    UNCHANGED = "unchanged"


UNCHANGED = Unchanged.UNCHANGED


class StreamState(OpenEnum):
    """State of a stream. `unreadable`: a newer release stored it, and this one cannot read it."""

    CONNECTING = "connecting"
    RUNNING = "running"
    RECONNECTING = "reconnecting"
    PAUSED = "paused"
    ENDED = "ended"
    FAILED = "failed"
    UNREADABLE = "unreadable"


def _describe_modes(schema: dict[str, Any]) -> None:
    """Say in the JSON schema which fields go with a mode of :class:`Sampling`."""
    if "properties" not in schema:  # of what is returned
        return
    fields = set().union(*_SAMPLING.values())
    schema["anyOf"] = [
        {
            "properties": {"mode": {"const": mode}}
            | {name: {"type": "null"} for name in sorted(fields - own.keys())},
            **({} if mode == "fps" else {"required": ["mode"]}),
        }
        for mode, own in _SAMPLING.items()
    ]


class Sampling(Record):
    """How frames are sampled from a stream. Each mode has its own fields; the others are None.

    `fps`: that many frames per second. `keyframes`: key frames, at most one every `min_interval`
    seconds; nothing else is decoded. `change`: frames that differ by `threshold` from the last
    sampled one, at most one every `min_interval` seconds and at least one every `max_interval`.
    """

    model_config = Record.model_config | {"json_schema_extra": _describe_modes}

    mode: Literal["fps", "keyframes", "change"] = "fps"
    fps: float | None = Field(
        default=None, gt=0, le=60, description="sampled frames per stream second; default 1"
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="difference that counts as a change, 0 to 1; default 0.1",
    )
    min_interval: float | None = Field(
        default=None, ge=0.01, le=3600, description="minimum seconds between frames; default 0.2"
    )
    max_interval: float | None = Field(
        default=None, gt=0, le=3600, description="maximum seconds between frames; default 10"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Fill in the defaults of the mode, and reject fields of other modes."""
        own = _SAMPLING[self.mode]
        for name in type(self).model_fields:
            if name == "mode" or getattr(self, name) is not None:
                continue
            if name in own:
                # bypasses the validation of assignments, which would call this validator again
                self.__dict__[name] = own[name]
        for name in sorted(type(self).model_fields.keys() - own.keys() - {"mode"}):
            if getattr(self, name) is not None:
                takes = " and ".join(own) if len(own) < 3 else ", ".join(own)
                raise PydanticCustomError(
                    "sampling",
                    "'{name}' does not go with the sampling mode '{mode}', which takes {takes}",
                    {"name": name, "mode": self.mode, "takes": takes},
                )
        shortest, longest = self.min_interval, self.max_interval
        if shortest is not None and longest is not None and longest < shortest:
            raise PydanticCustomError(
                "sampling",
                "'max_interval' ({longest} s) is shorter than 'min_interval' ({shortest} s)",
                {"longest": f"{longest:g}", "shortest": f"{shortest:g}"},
            )
        return self

    @model_serializer(mode="wrap")
    def _own_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    @property
    def max_fps(self) -> float:
        """Upper bound of the sampled frames per second."""
        return self.fps if self.fps is not None else 1.0 / (self.min_interval or 1.0)


_SAMPLING: dict[str, dict[str, float]] = {
    "fps": {"fps": 1.0},
    "keyframes": {"min_interval": 0.2},
    "change": {"threshold": 0.1, "min_interval": 0.2, "max_interval": 10.0},
}


ModelName = Annotated[str, Field(min_length=1, max_length=MAX_MODEL_NAME)]
"""Name of a model, as `GET /v1/models` lists it."""

Transport = Literal["auto", "tcp", "udp"]
"""Transport of RTSP video: TCP, UDP, or `auto`: TCP, and UDP if the server refuses TCP."""


class Watch(Record):
    """A standing question about a stream: one result per window.

    With `alert`, the answers are yes or no with a probability, and open and end incidents.
    """

    id: str = Field(default_factory=lambda: new_id("wch"))
    prompt: str = Field(min_length=1, description="the question or instruction")
    window: float = Field(
        default=10.0, gt=0, le=MAX_WINDOW, description="seconds that a clip spans"
    )
    max_frames: int = Field(
        default=16, ge=1, le=MAX_CLIP_FRAMES, description="maximum frames of a clip"
    )
    max_tokens: int = Field(
        default=128, ge=1, le=MAX_ANSWER_TOKENS, description="maximum tokens of an answer"
    )
    response_format: ResponseFormat = Field(
        default_factory=TextFormat, description="format of the answer: text, choice or json_schema"
    )
    alert: AlertRule | None = Field(
        default=None, description="when the answers open an incident; null: they never do"
    )
    model: ModelName | None = Field(
        default=None, description="model that answers; null: that of the stream"
    )

    _read_old = model_validator(mode="before")(with_response_format)

    @model_validator(mode="after")
    def _answered_as_alert(self) -> Self:
        """Set the format of an alert's answers. Refuse any other."""
        form = self.response_format
        if self.alert is None or form == ALERT_FORMAT:
            return self
        if form.type != "text":
            raise PydanticCustomError(
                "alert", "an alert is answered with yes or no: leave out 'response_format'"
            )
        # bypasses the validation of assignments, which would call this validator again
        self.__dict__["response_format"] = ALERT_FORMAT.model_copy(deep=True)
        return self


ALERT_FORMAT = ChoiceFormat(choices=ALERT_CHOICES)
"""The format of an alert's answers."""


class StreamSpec(Record):
    """A stream as a user attached it."""

    id: str = Field(default_factory=lambda: new_id("str"))
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    url: str = Field(description="the URL, with its password masked")
    url_version: int = Field(
        default=0, description="increases with each change of the URL or its password"
    )
    live: bool = Field(description="false for a recording, of which no frame is ever dropped")
    transport: Transport = Field(
        default="auto", description="transport of RTSP; auto: TCP, and UDP if TCP is refused"
    )
    sampling: Sampling = Field(default_factory=Sampling)
    watches: list[Watch] = Field(default_factory=list, max_length=MAX_WATCHES)
    history: float | None = Field(
        default=None,
        ge=0,
        le=90 * 86400,
        description="seconds that frames, thinned with age, are kept; default: the setting history",
    )
    retention_days: float | None = Field(
        default=None,
        gt=0,
        le=36_500,
        description="days that results are kept; default: the setting retention_days",
    )
    paused: bool = Field(default=False, description="the stream stays attached, but is not read")
    model: ModelName | None = Field(
        default=None,
        description="model of the stream's watches and queries that name none; null: the default",
    )
    endpoint_reference: str | None = Field(
        default=None,
        max_length=MAX_ENDPOINT_REFERENCE,
        description="what the camera is called at every address: see POST /v1/discovery; null: "
        "unknown",
    )
    created_at: Timestamp = Field(default_factory=utc_now)


class ErrorInfo(Record):
    """An error: a stable code, and one sentence that says what to do."""

    code: ErrorCode
    message: str


class Drops(Record):
    """Frames of a stream that were dropped, by cause."""

    late: int = Field(default=0, description="arrived faster than this machine decodes")
    decode_error: int = Field(default=0, description="damaged, or lost in part by the network")
    redis_away: int = Field(default=0, description="Redis did not respond")
    redis_full: int = Field(default=0, description="Redis was out of memory")
    archive: int = Field(
        default=0, description="not archived: the archive was too slow or unavailable"
    )

    @property
    def total(self) -> int:
        """Total over all causes."""
        return sum(getattr(self, name) for name in type(self).model_fields)


class StreamCounters(Record):
    """Activity of a stream since it was attached. Fields without a unit are counts."""

    packets: int = Field(default=0, description="video packets received")
    bytes: int = Field(default=0, description="bytes of video received")
    decoded: int = Field(default=0, description="frames decoded")
    sampled: int = Field(default=0, description="frames sampled and stored")
    dropped: Drops = Field(default_factory=Drops, description="frames dropped, by cause")
    clips: int = Field(default=0, description="clips submitted by the watches")
    clips_dropped: int = Field(
        default=0, description="clips of live watches dropped because earlier ones still waited"
    )
    reconnects: int = Field(default=0, description="times that the connection was re-established")
    position: float = Field(default=0.0, description="stream time reached, seconds")
    duration: float | None = Field(default=None, description="length of a recording, seconds")
    fps: float | None = Field(default=None, description="frames per second according to the source")
    measured_fps: float | None = Field(
        default=None, description="frames per second received during the last seconds"
    )
    bit_rate: float | None = Field(
        default=None, description="bits of video per second received during the last seconds"
    )
    width: int | None = Field(default=None, description="width of the video, pixels")
    height: int | None = Field(default=None, description="height of the video, pixels")
    codec: str | None = Field(default=None, description="codec of the video, such as h264")


MAX_WARNINGS = 16
"""Warnings that the status of a stream holds."""


class StreamStatus(Record):
    """The state of a stream, since when it holds, and why."""

    state: StreamState = StreamState.CONNECTING
    since: Timestamp = Field(default_factory=utc_now, description="when this state began")
    error: ErrorInfo | None = Field(default=None, description="why the stream is in this state")
    warnings: list[ErrorInfo] = Field(
        default_factory=list,
        max_length=MAX_WARNINGS,
        description="problems of the stream that do not stop it",
    )
    last_frame_at: Timestamp | None = Field(
        default=None, description="when the newest frame was captured"
    )
    reported_at: Timestamp | None = Field(
        default=None, description="when an ingest worker last reported this status"
    )
    worker: str | None = Field(default=None, description="the ingest worker that reported it")
    counters: StreamCounters = Field(default_factory=StreamCounters)


class Stream(StreamSpec, StreamStatus):
    """An attached stream and its status."""

    unanswered: int | None = Field(
        default=None,
        description="windows of a recording that have no result yet: with 0, and the state ended "
        "or failed, every result is there; null for a live stream",
    )
    kept_seconds: float | None = Field(
        default=None,
        description="seconds since the oldest frame was captured that is kept in Redis; null "
        "without frames, and for a recording",
    )

    @computed_field(description="seconds since the newest frame was captured")  # type: ignore[prop-decorator]
    @property
    def last_frame_age(self) -> float | None:
        """Seconds since the newest frame of a live stream was captured."""
        if self.last_frame_at is None or not self.live:
            return None
        return round(max(0.0, (utc_now() - self.last_frame_at).total_seconds()), 1)


class FrameRef(Record):
    """Reference to one sampled frame; its JPEG is in Redis, under a TTL."""

    stream_id: str
    id: str = Field(description="id in the stream's frame index: '<milliseconds>-<sequence>'")
    time: float = Field(description="wall clock, seconds since the Unix epoch")
    pts: float = Field(description="stream time, seconds")
    epoch: int = Field(
        default=0,
        description="how often the clocks that date the stream have stepped since it was opened",
    )
    width: int = Field(description="width of the JPEG, pixels")
    height: int = Field(description="height of the JPEG, pixels")
    change: float = Field(description="mean absolute luma difference to the previous frame, 0 to 1")
    decode_ms: float = Field(
        default=0.0, description="milliseconds to decode, sample and encode the frame"
    )
    detail: tuple[float, ...] = Field(
        default=(),
        description="edge strength per octave, finest first, 0 to 255; see docs/resolution.md",
    )
    fresh: tuple[float, ...] = Field(
        default=(), description="the same, of the parts that differ from the previous frame"
    )

    @property
    def measures(self) -> Measures:
        """The measures that a resolution policy plans from."""
        return Measures(self.width, self.height, self.detail, self.fresh, self.change)


def thinned(refs: Sequence[FrameRef], indices: Sequence[int]) -> list[FrameRef]:
    """Return the frames at `indices` (ascending).

    The change of a frame that is left out is added to the next one that is kept.
    """
    measures = subsample([ref.measures for ref in refs], indices)
    return [
        refs[index].model_copy(update={"change": now.change, "fresh": now.fresh})
        for index, now in zip(indices, measures, strict=True)
    ]


class Gap(Record):
    """A part of a range of which no frame is kept: longer than the sampling explains."""

    start: Timestamp
    end: Timestamp


MAX_GAPS = 32
"""Gaps that a result names: the longest ones."""


class RequestKind(StrEnum):
    """Kind of a request, which decides its queue."""

    QUERY = "query"
    WATCH = "watch"
    FILE = "file"


VERIFIES = "verifies"
"""Entry of the `data` of a request that asks whether a hit of a search is one: the hit's request.
Such an answer is neither recorded nor announced: it says nothing new about the stream."""


def _verifies(data: dict[str, Any] | None) -> bool:
    return VERIFIES in (data or {})


class ClipRequest(Record):
    """A question about the frames of one clip, as a job carries it."""

    version: int = Field(default=1, description="of the record: see `streamer/record_version.py`")
    id: str = Field(default_factory=lambda: new_id("req"))
    kind: RequestKind
    stream_id: str
    stream_name: str
    watch_id: str | None = None
    start: Timestamp
    end: Timestamp
    prompt: str
    frames: list[FrameRef]
    max_tokens: int = 128
    model: str | None = Field(default=None, description="model that is to answer; null: default")
    response_format: ResponseFormat = Field(default_factory=TextFormat)
    logprobs: int | None = Field(
        default=None,
        ge=0,
        le=MAX_LOGPROBS,
        description="see `nvila_core.SamplingParams`; with any number, the result of a choice has "
        "`data.probabilities`",
    )
    created_at: Timestamp = Field(default_factory=utc_now)
    data: dict[str, Any] | None = Field(default=None, description="copied to the result's data")
    warning: str | None = Field(default=None, description="copied to the result")
    gaps: list[Gap] = Field(default_factory=list, max_length=MAX_GAPS)
    stale: bool = Field(default=False, description="about now, but without a recent frame")
    alert: AlertRule | None = Field(default=None, description="the rule of an alert's window")
    part_of: str | None = Field(default=None, description="the query that this is one part of")
    traceparent: str | None = Field(
        default=None,
        description="trace context (W3C) of its submission, while traces are collected",
    )

    _read_old = model_validator(mode="before")(with_response_format)

    @property
    def answer_kind(self) -> "ResultKind":
        """The kind of its result, unless that is an error."""
        if self.kind is RequestKind.QUERY or self.part_of is not None:
            return ResultKind.ANSWER
        return ResultKind.CAPTION if self.alert is None else ResultKind.ALERT

    @property
    def delta_id(self) -> str | None:
        """The query whose answer people read while it is generated; None if they do not."""
        asked = self.kind is RequestKind.QUERY and self.part_of is None
        return self.id if asked and not _verifies(self.data) else None

    @property
    def asks_yes_or_no(self) -> bool:
        """Whether the service itself asks for yes or no, so that their spelling is its own matter:
        an alert, or whether a hit of a search is one."""
        of_service = self.alert is not None or _verifies(self.data)
        return of_service and self.response_format == ALERT_FORMAT

    @property
    def allowed_format(self) -> ResponseFormat:
        """The format to which the model is held: `response_format`, or all spellings of yes and no;
        then `yes_or_no.in_one_spelling` reads the answer."""
        return SPELLED_FORMAT if self.asks_yes_or_no else self.response_format

    @property
    def sampling(self) -> dict[str, Any]:
        """Arguments of `nvila_core.SamplingParams`."""
        # a spelling that takes more tokens than another is not cut
        least = MIN_YES_NO_TOKENS if self.asks_yes_or_no else self.max_tokens
        return {
            "max_tokens": max(self.max_tokens, least),
            "logprobs": self.logprobs,
            **self.allowed_format.constraint,
        }

    @classmethod
    def for_watch(
        cls,
        stream: StreamSpec,
        watch: Watch,
        *,
        start: datetime,
        end: datetime,
        frames: list[FrameRef],
        **fields: Any,
    ) -> Self:
        """Build the request that asks a watch's question about one window of its stream.

        `fields` are those that neither the stream nor the watch determines: `id`, `data`, `gaps`.
        """
        return cls(
            kind=RequestKind.WATCH if stream.live else RequestKind.FILE,
            stream_id=stream.id,
            stream_name=stream.name,
            watch_id=watch.id,
            start=start,
            end=end,
            prompt=watch.prompt,
            frames=frames,
            max_tokens=watch.max_tokens,
            model=watch.model or stream.model,
            response_format=watch.response_format,
            alert=watch.alert,
            logprobs=None if watch.alert is None else 0,  # the probabilities of yes and no
            **fields,
        )


class QueryStatus(OpenEnum):
    """Progress of a query; the last three values are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class FrameResolution(Record):
    """The resolution at which one frame was processed, and why."""

    model_config = ConfigDict(frozen=True)  # results share it

    grid: tuple[int, int] = Field(
        description="columns and rows of tiles, in addition to a thumbnail"
    )
    reason: str = Field(description="why the policy chose this grid")


class ResultKind(OpenEnum):
    """Kind of a result."""

    CAPTION = "caption"
    ANSWER = "answer"
    ALERT = "alert"
    SUMMARY = "summary"
    ERROR = "error"


class Result(Record):
    """The outcome of a request: exactly one per accepted request."""

    id: str = Field(default_factory=lambda: new_id("res"))
    request_id: str = Field(description="the query, or the request that a watch made")
    kind: ResultKind = Field(
        description="caption: of a watch; alert: of an alert, see data; answer: to a query; "
        "summary: of a part of a longer text, on the way to an answer; error: no answer, see error"
    )
    stream_id: str | None
    stream_name: str | None
    watch_id: str | None = Field(default=None, description="the watch that asked; null: a query")
    start: Timestamp | None = Field(default=None, description="start of the clip")
    end: Timestamp | None = Field(default=None, description="end of the clip")
    created_at: Timestamp = Field(default_factory=utc_now)
    prompt: str
    text: str | None = Field(
        default=None,
        description="the answer; with FORM_UNFINISHED the beginning of it, with other errors null",
    )
    data: dict[str, Any] | None = Field(
        default=None,
        description="choice or json: the answer in the requested form; probabilities: that of "
        "each choice, together 1, if the request asked for them; yes and probability: those of an "
        "alert; media_start and media_end: position in a recording, seconds; windows: the answers "
        "of a query about several windows, and unknown: how many have none; blocks: the parts of "
        "a summary",
    )
    warning: str | None = Field(
        default=None, description="what was wrong with the source although it could be read"
    )
    finish_reason: str | None = Field(default=None, description="why generation ended")
    error: ErrorInfo | None = None
    model: str | None = Field(default=None, description="name of the model that answered")
    frames: int = Field(default=0, description="frames of the clip")
    frames_from: Timestamp | None = Field(
        default=None, description="when the oldest frame of the clip was captured"
    )
    frames_to: Timestamp | None = Field(
        default=None, description="when the newest frame of the clip was captured"
    )
    frame_times: list[Timestamp] = Field(
        default_factory=list, description="when each frame of the clip was captured, in order"
    )
    newest_frame_age: float | None = Field(
        default=None,
        description="age of the newest frame when the question was asked, seconds; null for a "
        "recording",
    )
    gaps: list[Gap] = Field(
        default_factory=list,
        description="parts of the range of which no frame is kept, the longest ones; the answer "
        "says nothing about them",
    )
    stale: bool = Field(
        default=False,
        description="the question was about now, but its newest frame is too old for that",
    )
    tiles: int = Field(default=0, description="tiles that the frames were split into")
    plan: list[FrameResolution] | None = Field(
        default=None, description="resolution of each frame, in the order of the frames"
    )
    vision_tokens: int = Field(default=0, description="tokens of the prompt that show frames")
    prompt_tokens: int = Field(default=0, description="tokens of the whole prompt")
    cached_tokens: int = Field(default=0, description="tokens of the prompt found in the KV cache")
    completion_tokens: int = Field(default=0, description="tokens generated")
    decode_ms: float = Field(default=0.0, description="ms to decode, sample and encode the frames")
    queue_ms: float = Field(default=0.0, description="ms of waiting for a worker and in the engine")
    encode_ms: float = Field(default=0.0, description="ms of encoding tiles")
    generate_ms: float = Field(default=0.0, description="ms of reading the prompt and generating")
    alert: AlertRule | None = Field(
        default=None,
        description="the rule of the alert whose window this is; null in the timeline",
    )
    traceparent: str | None = Field(
        default=None,
        description="trace context (W3C) of the answer, while traces are collected; null in the "
        "timeline",
    )
    total_ms: float = Field(
        default=0.0,
        description="ms to the result: from the capture of the newest frame for a live watch, "
        "from the request otherwise",
    )

    @classmethod
    def shown(cls, stored: bytes | dict[str, Any], request_id: str = "") -> Self:
        """Return a stored result; in place of one that cannot be read an error result that says
        so, with what can be read of it."""
        try:
            return cls.read(stored)
        except StreamerError as error:
            part = cls.read_in_part(
                stored,
                request_id=request_id,
                kind=ResultKind.ERROR,
                stream_id=None,
                stream_name=None,
                prompt="",
            )
            reason = ErrorInfo(code=error.code, message=error.message)
            return part.model_copy(update={"kind": ResultKind.ERROR, "error": reason})

    @classmethod
    def answering(cls, request: ClipRequest, **outcome: Any) -> Self:
        """Build the result of a request from what it asked and its `outcome`: fields of a result.

        Its kind is `error` with an error, else the request's `answer_kind`.
        """
        failed = outcome.get("error") is not None
        kind = ResultKind.ERROR if failed else request.answer_kind
        asked: dict[str, Any] = {
            "request_id": request.id,
            "kind": kind,
            "stream_id": request.stream_id or None,
            "stream_name": request.stream_name or None,
            "watch_id": request.watch_id,
            "start": request.start,
            "end": request.end,
            "prompt": request.prompt,
            "data": request.data,
            "warning": request.warning,
            "frames": len(request.frames),
            "gaps": request.gaps,
            "stale": request.stale,
            "alert": request.alert,
            "traceparent": request.traceparent,
            **_seen(request),
        }
        return cls(**asked | outcome)

    @property
    def verifies(self) -> bool:
        """Whether it is about a hit of a search; see `VERIFIES`."""
        return _verifies(self.data)


SearchMode = Literal["words", "meaning"]
"""How a text is searched for."""


class Match(Record):
    """How well a result fits a search by meaning, and what the model says about it."""

    request_id: str = Field(description="of the result")
    similarity: float | None = Field(
        default=None, description="of its meaning, at most 1; null: found by its words"
    )
    verdict: Literal["yes", "no", "pending", "unverified"] | None = Field(
        default=None,
        description="whether its frames show what is searched for, says the model; pending: it is "
        "being asked; unverified: it cannot be asked, see reason; null: not asked (verify)",
    )
    probability: float | None = Field(default=None, description="of yes")
    reason: str | None = Field(default=None, description="what is to be known about the verdict")


class Hit(Record):
    """A result, and how well it fits the search that found it."""

    result: Result
    match: Match


def _seen(request: ClipRequest) -> dict[str, Any]:
    """Return the fields of a result that say when its frames were captured."""
    times = [to_datetime(frame.time) for frame in request.frames]
    if not times:
        return {}
    newest = max(times)
    # The frames of a recording are dated by their place in it, so they have no age.
    recorded = request.kind is RequestKind.FILE or "media_start" in (request.data or {})
    age = round(max(0.0, (request.created_at - newest).total_seconds()), 3)
    return {
        "frames_from": min(times),
        "frames_to": newest,
        "frame_times": times,
        "newest_frame_age": None if recorded else age,
    }


class StoredFrame(Record):
    """A sampled frame, and where its JPEG is."""

    time: Timestamp = Field(description="when it was captured")
    id: str | None = Field(default=None, description="null: it is not kept any more")
    url: str | None = Field(default=None, description="path of its JPEG; null: it is not kept")
    width: int | None = None
    height: int | None = None
    grid: tuple[int, int] | None = Field(
        default=None, description="columns and rows of tiles in which the model saw it"
    )

    @classmethod
    def of(cls, ref: FrameRef, grid: tuple[int, int] | None = None) -> Self:
        """Return what can be said of a frame that is kept."""
        return cls(
            time=to_datetime(ref.time),
            id=ref.id,
            url=f"/v1/frames/{ref.stream_id}/{ref.id}.jpg",
            width=ref.width,
            height=ref.height,
            grid=grid,
        )


class StoredFrameList(Record):
    """Frames of a range, in order of time, and the parts of it of which none is kept."""

    frames: list[StoredFrame]
    gaps: list[Gap] = Field(default_factory=list)


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


PartName = Literal["redis", "frames redis", "database", "ingest worker", "model worker", "recorder"]


PartState = Literal["up", "loading", "impaired", "missing"]


class Part(Record):
    """A program or a server that the installation needs."""

    name: PartName
    up: bool
    last_seen_at: Timestamp | None = Field(
        default=None, description="when it last worked; null if it has not been seen yet"
    )
    state: PartState | None = Field(
        default=None,
        description="loading: a model worker runs, and loads its model; impaired: it runs, but "
        "something is missing, see message; missing: it does not run",
    )
    message: str | None = Field(default=None, description="what is missing, and what to do")


class Scope(StrEnum):
    """What a key may do. `operate` includes `read`."""

    READ = "read"
    OPERATE = "operate"
