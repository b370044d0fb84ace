"""The words of the service as types: stream, watch, frame, clip, query, result.

Times inside records are timezone-aware UTC datetimes (RFC 3339 in JSON). Frame times are float
seconds since the Unix epoch, because they are sorted, compared and subtracted a lot.
"""

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializerFunctionWrapHandler,
    computed_field,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from nvila_core.resolution.policy import Measures, subsample
from streamer.errors import ErrorCode
from streamer.response_format import ResponseFormat, TextFormat, with_response_format


def new_id(prefix: str) -> str:
    """A fresh identifier such as `str_9f2c4e1ab07d`: sortable by kind, unguessable, URL-safe."""
    return f"{prefix}_{secrets.token_hex(8)}"


def utc_now() -> datetime:
    """The present moment, timezone-aware."""
    return datetime.now(UTC)


def to_datetime(epoch: float) -> datetime:
    """Seconds since the Unix epoch as an aware UTC datetime."""
    return datetime.fromtimestamp(epoch, UTC)


def _as_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def rfc3339(value: datetime) -> str:
    """RFC 3339 with milliseconds and `Z`: one fixed width, so that text order is time order."""
    return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[
    datetime, AfterValidator(_as_utc), PlainSerializer(rfc3339, return_type=str, when_used="json")
]


class Record(BaseModel):
    """Base of all records. Unknown fields are errors, so that a misspelt field never passes."""

    model_config = ConfigDict(extra="forbid")


class StreamState(StrEnum):
    """Where a stream is in its life."""

    CONNECTING = "connecting"
    RUNNING = "running"
    RECONNECTING = "reconnecting"
    PAUSED = "paused"
    ENDED = "ended"
    FAILED = "failed"


class Sampling(Record):
    """How frames are taken from a stream. Each mode has fields of its own; the others are None.

    `fps`: so many frames a second. `keyframes`: key frames, at most one every `min_interval`
    seconds; nothing else is decoded. `change`: a frame that differs by `threshold` from the last
    one taken, at most one every `min_interval` seconds and at least one every `max_interval`.
    """

    mode: Literal["fps", "keyframes", "change"] = "fps"
    fps: float | None = Field(
        default=None, gt=0, le=60, description="sampled frames per stream second; default 1"
    )
    threshold: float | None = Field(
        default=None, gt=0, le=1, description="difference that counts as a change; default 0.1"
    )
    min_interval: float | None = Field(
        default=None, ge=0.01, le=3600, description="seconds between frames at least; default 0.2"
    )
    max_interval: float | None = Field(
        default=None, gt=0, le=3600, description="seconds between frames at most; default 10"
    )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        """Fill in the mode's defaults, and refuse what belongs to another mode."""
        own = _SAMPLING[self.mode]
        for name in type(self).model_fields:
            if name == "mode" or getattr(self, name) is not None:
                continue
            if name in own:
                # past the validation of assignments, which would begin all this anew
                self.__dict__[name] = own[name]
        for name in sorted(type(self).model_fields.keys() - own.keys() - {"mode"}):
            if getattr(self, name) is not None:
                takes = " and ".join(own) if len(own) < 3 else ", ".join(own)
                raise PydanticCustomError(
                    "sampling",
                    "'{name}' does not go with the sampling mode '{mode}', which takes {takes}",
                    {"name": name, "mode": self.mode, "takes": takes},
                )
        least, most = self.min_interval, self.max_interval
        if least is not None and most is not None and most < least:
            raise PydanticCustomError(
                "sampling",
                "'max_interval' ({most} s) is shorter than 'min_interval' ({least} s)",
                {"most": f"{most:g}", "least": f"{least:g}"},
            )
        return self

    @model_serializer(mode="wrap")
    def _own_fields(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in handler(self).items() if value is not None}

    @property
    def max_fps(self) -> float:
        """Frames a second at most."""
        return self.fps if self.fps is not None else 1.0 / (self.min_interval or 1.0)


_SAMPLING: dict[str, dict[str, float]] = {
    "fps": {"fps": 1.0},
    "keyframes": {"min_interval": 0.2},
    "change": {"threshold": 0.1, "min_interval": 0.2, "max_interval": 10.0},
}


Transport = Literal["auto", "tcp", "udp"]
"""How RTSP brings the video: over TCP, over UDP, or over TCP and, where that is refused, UDP."""


MAX_WATCHES = 64
"""Watches of one stream at most: each is another request for every window."""


class Watch(Record):
    """A standing question on a stream: one result for every window."""

    id: str = Field(default_factory=lambda: new_id("wch"))
    prompt: str = Field(min_length=1)
    window: float = Field(default=10.0, gt=0, le=3600, description="seconds that a clip spans")
    max_frames: int = Field(default=16, ge=1, le=256, description="frames of a clip at most")
    max_tokens: int = Field(default=128, ge=1, le=4096, description="tokens of an answer at most")
    response_format: ResponseFormat = Field(default_factory=TextFormat)

    _read_old = model_validator(mode="before")(with_response_format)


class StreamSpec(Record):
    """What a user attached. `url` is fit to be shown: the password is kept apart from it."""

    id: str = Field(default_factory=lambda: new_id("str"))
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    url: str
    url_version: int = Field(default=0, description="grows when the URL or password is changed")
    live: bool = Field(description="false for a recording: nothing of it is ever dropped")
    transport: Transport = Field(
        default="auto", description="how RTSP brings the video; auto: TCP, UDP if that is refused"
    )
    sampling: Sampling = Field(default_factory=Sampling)
    watches: list[Watch] = Field(default_factory=list, max_length=MAX_WATCHES)
    history: float | None = Field(
        default=None,
        ge=0,
        le=90 * 86400,
        description="seconds that frames, thinned with age, are kept; default: the setting",
    )
    paused: bool = Field(default=False, description="attached, but neither read nor asked about")
    created_at: Timestamp = Field(default_factory=utc_now)


class ErrorInfo(Record):
    """A stable code and one plain sentence."""

    code: ErrorCode
    message: str


class Drops(Record):
    """Frames of a stream that were given up, by cause."""

    late: int = Field(default=0, description="came faster than this machine could decode")
    decode_error: int = Field(default=0, description="damaged, or half lost on the way")
    redis_away: int = Field(default=0, description="Redis did not answer")
    redis_full: int = Field(default=0, description="Redis had no memory left")
    archive: int = Field(default=0, description="not archived: the archive was too slow or away")

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, name) for name in type(self).model_fields)


class StreamCounters(Record):
    """What a stream did since it was attached. Counts, unless a unit is named."""

    packets: int = 0
    bytes: int = Field(default=0, description="bytes of video received")
    decoded: int = 0
    sampled: int = 0
    dropped: Drops = Field(default_factory=Drops)
    clips: int = 0
    clips_dropped: int = Field(default=0, description="clips of a live watch that came too late")
    reconnects: int = 0
    position: float = Field(default=0.0, description="stream time reached, seconds")
    duration: float | None = Field(default=None, description="length of a recording, seconds")
    fps: float | None = Field(default=None, description="frames per second that the source claims")
    measured_fps: float | None = Field(
        default=None, description="frames per second that come, of the last seconds"
    )
    bit_rate: float | None = Field(
        default=None, description="bits of video per second that come, of the last seconds"
    )
    width: int | None = None
    height: int | None = None
    codec: str | None = None


class StreamStatus(Record):
    """The state that a stream is in, since when and why."""

    state: StreamState = StreamState.CONNECTING
    since: Timestamp = Field(default_factory=utc_now)
    error: ErrorInfo | None = None
    warnings: list[ErrorInfo] = Field(
        default_factory=list,
        max_length=16,
        description="what is wrong with the stream although it can be read",
    )
    last_frame_at: Timestamp | None = None
    reported_at: Timestamp | None = Field(
        default=None, description="when an ingest worker last told of the stream"
    )
    worker: str | None = Field(default=None, description="the ingest worker that told")
    counters: StreamCounters = Field(default_factory=StreamCounters)


class Stream(StreamSpec, StreamStatus):
    """A stream as users see it: what was attached and how it is."""

    @computed_field(description="seconds since the newest frame was captured")  # type: ignore[prop-decorator]
    @property
    def last_frame_age(self) -> float | None:
        """Seconds since the newest frame of a live stream was captured."""
        if self.last_frame_at is None or not self.live:
            return None
        return round(max(0.0, (utc_now() - self.last_frame_at).total_seconds()), 1)


class FrameRef(Record):
    """One sampled picture, by reference; its JPEG bytes stay in Redis under a TTL."""

    stream_id: str
    id: str = Field(description="id in the stream's frame index: '<milliseconds>-<sequence>'")
    time: float = Field(description="wall clock, seconds since the Unix epoch")
    pts: float = Field(description="stream time, seconds")
    epoch: int = Field(
        default=0,
        description="how often the clocks that date the stream have stepped since it was opened",
    )
    width: int
    height: int
    change: float = Field(description="mean absolute luma difference to the frame before, 0 to 1")
    decode_ms: float = Field(default=0.0, description="decoding, sampling and JPEG, milliseconds")
    detail: tuple[float, ...] = Field(
        default=(),
        description="edge strength of ever coarser detail, 0 to 255: see docs/resolution.md",
    )
    fresh: tuple[float, ...] = Field(
        default=(), description="the same, of what is new since the frame before"
    )

    @property
    def measures(self) -> Measures:
        """What a resolution policy plans from."""
        return Measures(self.width, self.height, self.detail, self.fresh, self.change)


def thinned(refs: Sequence[FrameRef], indices: Sequence[int]) -> list[FrameRef]:
    """The frames at `indices` (ascending); what changed in those left out counts for the next."""
    measures = subsample([ref.measures for ref in refs], indices)
    return [
        refs[index].model_copy(update={"change": now.change, "fresh": now.fresh})
        for index, now in zip(indices, measures, strict=True)
    ]


class RequestKind(StrEnum):
    """Which of the three queues a request waits in."""

    QUERY = "query"
    WATCH = "watch"
    FILE = "file"


class ClipRequest(Record):
    """One question about the frames of one window: what travels in a job."""

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
    response_format: ResponseFormat = Field(default_factory=TextFormat)
    created_at: Timestamp = Field(default_factory=utc_now)
    data: dict[str, Any] | None = Field(default=None, description="copied into the result")

    _read_old = model_validator(mode="before")(with_response_format)

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

        `fields` are those that neither the stream nor the watch determines: `id` and `data`.
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
            response_format=watch.response_format,
            **fields,
        )


class QueryStatus(StrEnum):
    """How far a query is; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class PlannedFrame(Record):
    """How closely one frame was looked at, and why."""

    grid: tuple[int, int] = Field(description="columns and rows of tiles, beside a thumbnail")
    reason: str


class Result(Record):
    """What came out of one request: exactly one for each that was accepted."""

    id: str = Field(default_factory=lambda: new_id("res"))
    request_id: str
    kind: Literal["caption", "answer", "alert", "error"]
    stream_id: str | None
    stream_name: str | None
    watch_id: str | None = None
    start: Timestamp | None = None
    end: Timestamp | None = None
    created_at: Timestamp = Field(default_factory=utc_now)
    prompt: str
    text: str | None = None
    data: dict[str, Any] | None = None
    finish_reason: str | None = None
    error: ErrorInfo | None = None
    model: str | None = None
    frames: int = 0
    tiles: int = 0
    plan: list[PlannedFrame] | None = Field(default=None, description="of each frame, in order")
    vision_tokens: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    decode_ms: float = 0.0
    queue_ms: float = 0.0
    encode_ms: float = 0.0
    generate_ms: float = 0.0
    total_ms: float = Field(
        default=0.0, description="newest frame's capture to result; of a file: job to result"
    )

    @classmethod
    def answering(cls, request: ClipRequest, **outcome: Any) -> Self:
        """Build the result of a request from what it asked and its `outcome`: fields of a result.

        Its kind is `error` with an error, else `answer` to a query and `caption` of a window.
        """
        if outcome.get("error") is not None:
            kind = "error"
        else:
            kind = "answer" if request.kind is RequestKind.QUERY else "caption"
        asked: dict[str, Any] = {
            "request_id": request.id,
            "kind": kind,
            "stream_id": request.stream_id,
            "stream_name": request.stream_name,
            "watch_id": request.watch_id,
            "start": request.start,
            "end": request.end,
            "prompt": request.prompt,
            "data": request.data,
            "frames": len(request.frames),
        }
        return cls(**asked | outcome)


class Query(Record):
    """A one-off question and, once there is one, its result."""

    id: str
    status: QueryStatus
    stream_id: str
    stream_name: str
    prompt: str
    start: Timestamp
    end: Timestamp
    created_at: Timestamp
    result: Result | None = None

    @classmethod
    def of(cls, request: ClipRequest) -> Self:
        """Build the record of a request that has just been submitted."""
        return cls(
            id=request.id,
            status=QueryStatus.QUEUED,
            stream_id=request.stream_id,
            stream_name=request.stream_name,
            prompt=request.prompt,
            start=request.start,
            end=request.end,
            created_at=request.created_at,
        )
