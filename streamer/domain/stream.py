"""Define the records of a stream: what was asked for, its state and its counters."""

from enum import Enum
from typing import Literal

from pydantic import Field, computed_field

from streamer.domain.error_info import ErrorInfo
from streamer.domain.ids import new_id
from streamer.domain.record import ModelName, Record
from streamer.domain.sampling import Sampling
from streamer.domain.timestamp import Timestamp, utc_now
from streamer.domain.watch import Watch
from streamer.limits import MAX_ENDPOINT_REFERENCE, MAX_WATCHES
from streamer.open_enum import OpenEnum


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


Transport = Literal["auto", "tcp", "udp"]
"""Transport of RTSP video: TCP, UDP, or `auto`: TCP, and UDP if the server refuses TCP."""


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
