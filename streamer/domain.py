"""The words of the service as types: stream, watch, frame, clip, query, result.

Times inside records are timezone-aware UTC datetimes (RFC 3339 in JSON). Frame times are float
seconds since the Unix epoch, because they are sorted, compared and subtracted a lot.
"""

import secrets
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainSerializer

from streamer.errors import ErrorCode


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


class Model(BaseModel):
    """Base of all records: unknown fields are an error, so that a misspelt one never passes."""

    model_config = ConfigDict(extra="forbid")


class StreamState(StrEnum):
    """Where a stream is in its life."""

    CONNECTING = "connecting"
    RUNNING = "running"
    RECONNECTING = "reconnecting"
    PAUSED = "paused"
    ENDED = "ended"
    FAILED = "failed"


class Sampling(Model):
    """How frames are taken from a stream."""

    fps: float = Field(default=1.0, gt=0, le=60, description="sampled frames per stream second")


class Watch(Model):
    """A standing question on a stream: one result for every window."""

    id: str = Field(default_factory=lambda: new_id("wch"))
    prompt: str = Field(min_length=1)
    window: float = Field(default=10.0, gt=0, le=3600, description="seconds that a clip spans")
    max_frames: int = Field(default=16, ge=1, le=256, description="frames of a clip at most")
    max_tokens: int = Field(default=128, ge=1, le=4096, description="tokens of an answer at most")


class StreamSpec(Model):
    """What a user attached. `url` is fit to be shown: the password is kept apart from it."""

    id: str = Field(default_factory=lambda: new_id("str"))
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    url: str
    live: bool = Field(description="false for a recording: nothing of it is ever dropped")
    sampling: Sampling = Field(default_factory=Sampling)
    watches: list[Watch] = Field(default_factory=list)
    created_at: Timestamp = Field(default_factory=utc_now)


class ErrorInfo(Model):
    """A stable code and one plain sentence."""

    code: ErrorCode
    message: str


class StreamCounters(Model):
    """What a stream did since it was attached. Counts, unless a unit is named."""

    packets: int = 0
    decoded: int = 0
    sampled: int = 0
    dropped: int = Field(
        default=0, description="frames given up because this machine or Redis was late"
    )
    clips: int = 0
    clips_dropped: int = Field(default=0, description="clips of a live watch that came too late")
    reconnects: int = 0
    position: float = Field(default=0.0, description="stream time reached, seconds")
    duration: float | None = Field(default=None, description="length of a recording, seconds")
    fps: float | None = Field(default=None, description="frames per second that the source claims")
    width: int | None = None
    height: int | None = None
    codec: str | None = None


class StreamStatus(Model):
    """The state that a stream is in, since when and why."""

    state: StreamState = StreamState.CONNECTING
    since: Timestamp = Field(default_factory=utc_now)
    error: ErrorInfo | None = None
    last_frame_at: Timestamp | None = None
    counters: StreamCounters = Field(default_factory=StreamCounters)


class Stream(StreamSpec, StreamStatus):
    """A stream as users see it: what was attached and how it is."""


class FrameRef(Model):
    """One sampled picture, by reference; its JPEG bytes stay in Redis under a TTL."""

    stream_id: str
    id: str = Field(description="id in the stream's frame index: '<milliseconds>-<sequence>'")
    time: float = Field(description="wall clock, seconds since the Unix epoch")
    pts: float = Field(description="stream time, seconds")
    width: int
    height: int
    change: float = Field(description="mean absolute luma difference to the frame before, 0 to 1")
    decode_ms: float = Field(default=0.0, description="decoding, sampling and JPEG, milliseconds")


class RequestKind(StrEnum):
    """Which of the three queues a request waits in."""

    QUERY = "query"
    WATCH = "watch"
    FILE = "file"


class ClipRequest(Model):
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
    created_at: Timestamp = Field(default_factory=utc_now)
    data: dict[str, Any] | None = Field(default=None, description="copied into the result")


class QueryStatus(StrEnum):
    """How far a query is; the last three are final."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Result(Model):
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


class Query(Model):
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
