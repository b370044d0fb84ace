"""The options that say how frames are taken from a stream."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from streamer.domain import Sampling


class Mode(StrEnum):
    """Which frames are taken."""

    FPS = "fps"
    KEYFRAMES = "keyframes"
    CHANGE = "change"


class Transport(StrEnum):
    """How RTSP brings the video."""

    AUTO = "auto"
    TCP = "tcp"
    UDP = "udp"


ModeOption = Annotated[
    Mode | None,
    typer.Option(
        "--sampling",
        help="fps: so many a second. keyframes: those, for the least work. "
        "change: when the picture changes.",
    ),
]
FpsOption = Annotated[
    float | None, typer.Option(min=0.01, max=60, help="Frames to sample per second.")
]
ThresholdOption = Annotated[
    float | None,
    typer.Option(metavar="0..1", help="With --sampling change: what counts as one. Default: 0.1."),
]
MinIntervalOption = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="With keyframes and change: at most one in this time."),
]
MaxIntervalOption = Annotated[
    float | None,
    typer.Option(metavar="SECONDS", help="With change: at least one in this time. Default: 10."),
]
TransportOption = Annotated[
    Transport | None,
    typer.Option(help="Of RTSP. Default: auto, that is TCP, and UDP where that is refused."),
]
HistoryOption = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Keep frames for so long (12h, 7d), ever fewer with age. Default: the setting.",
    ),
]


def sampling_from(
    mode: Mode | None,
    fps: float | None,
    threshold: float | None,
    min_interval: float | None,
    max_interval: float | None,
) -> "Sampling | None":
    """What the options ask for; None when they say nothing.

    Raises StreamerError(INVALID_REQUEST) for options that do not go together.
    """
    from streamer.domain import Sampling
    from streamer.validation import validated

    given = {
        "mode": mode.value if mode is not None else None,
        "fps": fps,
        "threshold": threshold,
        "min_interval": min_interval,
        "max_interval": max_interval,
    }
    fields = {key: value for key, value in given.items() if value is not None}
    return validated(Sampling, **fields) if fields else None
