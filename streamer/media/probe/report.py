"""Define the records of a probe's findings."""

from pydantic import Field

from streamer.domain.error_info import ErrorInfo
from streamer.domain.record import Record


class ProbeStep(Record):
    """One step towards the first frame."""

    name: str
    ok: bool = Field(description="whether the step succeeded")
    ms: float = Field(description="milliseconds that the step took")
    detail: str = Field(default="", description="what the step found, or why it failed")


class ProbeReport(Record):
    """Findings of a probe; unknown values are None."""

    url: str = Field(description="the URL, with its password masked")
    ok: bool = Field(default=False, description="frames arrived")
    live: bool = Field(description="false for a recording")
    steps: list[ProbeStep] = Field(default_factory=list)
    error: ErrorInfo | None = None
    advice: list[str] = Field(default_factory=list, description="what to try next")

    server: str | None = Field(default=None, description="name of the server software")
    auth: str | None = Field(default=None, description="login method that the server requires")
    transport: str | None = Field(default=None, description="transport of the video: tcp or udp")
    format: str | None = None
    codec: str | None = None
    profile: str | None = None
    pixel_format: str | None = None
    interlaced: bool = Field(default=False, description="fields of two moments in each frame")
    width: int | None = None
    height: int | None = None
    fps: float | None = Field(default=None, description="frames per second, measured")
    claimed_fps: float | None = Field(
        default=None, description="frames per second according to the source"
    )
    gop_frames: int | None = Field(default=None, description="frames between two key frames")
    gop_seconds: float | None = Field(default=None, description="seconds between two key frames")
    bit_rate: int | None = Field(default=None, description="bits per second, measured")
    clock_drift: float | None = Field(
        default=None,
        description="seconds that the source's clock loses per second of this machine's",
    )
    first_frame_ms: float | None = Field(
        default=None, description="milliseconds from opening to the first frame"
    )
    decode_ms: float | None = Field(default=None, description="milliseconds to decode one frame")
    duration: float | None = Field(default=None, description="length of a recording, seconds")
    frames: int = Field(default=0, description="frames decoded")
    damaged: int = Field(default=0, description="packets that could not be decoded")
    seconds: float = Field(default=0.0, description="duration of the probe, seconds")

    def succeeded(self, name: str) -> bool:
        """Return whether the step `name` was taken and succeeded."""
        return any(step.ok for step in self.steps if step.name == name)
