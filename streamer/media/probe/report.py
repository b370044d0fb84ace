"""What a probe found out, as records."""

from pydantic import Field

from streamer.domain import ErrorInfo, Record


class ProbeStep(Record):
    """One step on the way to a picture."""

    name: str
    ok: bool
    ms: float
    detail: str = ""


class ProbeReport(Record):
    """Everything that was found out; None is what is not known."""

    url: str
    ok: bool = Field(default=False, description="pictures came")
    live: bool
    steps: list[ProbeStep] = Field(default_factory=list)
    error: ErrorInfo | None = None
    advice: list[str] = Field(default_factory=list, description="what to try")

    server: str | None = Field(default=None, description="what the server calls itself")
    auth: str | None = Field(default=None, description="login that the server asks for")
    transport: str | None = Field(default=None, description="how pictures came: tcp or udp")
    format: str | None = None
    codec: str | None = None
    profile: str | None = None
    pixel_format: str | None = None
    width: int | None = None
    height: int | None = None
    fps: float | None = Field(default=None, description="frames per second, measured")
    claimed_fps: float | None = None
    gop_frames: int | None = Field(default=None, description="frames between two key frames")
    gop_seconds: float | None = Field(default=None, description="seconds between two key frames")
    bit_rate: int | None = Field(default=None, description="bits per second, measured")
    clock_drift: float | None = Field(
        default=None, description="seconds that its clock loses against ours, per second"
    )
    first_frame_ms: float | None = Field(default=None, description="opening to the first picture")
    decode_ms: float | None = Field(default=None, description="decoding one frame")
    duration: float | None = Field(default=None, description="length of a recording, seconds")
    frames: int = 0
    damaged: int = Field(default=0, description="packets that could not be decoded")
    seconds: float = Field(default=0.0, description="how long the probe took")

    def steps_ok(self, name: str) -> bool:
        """Whether the step `name` was taken, and succeeded."""
        return any(step.ok for step in self.steps if step.name == name)
