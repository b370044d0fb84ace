"""The options that say how a stream is read and asked about: `attach` and `edit` share them."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from streamer.cli.answer_form import ChoiceOption, SchemaOption, form_from

if TYPE_CHECKING:
    from streamer.client import Client
    from streamer.domain import Sampling, Watch


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


FpsOption = Annotated[
    float | None, typer.Option(min=0.01, max=60, help="Frames to sample per second.")
]
TransportOption = Annotated[
    Transport | None,
    typer.Option(help="Of RTSP. Default: auto, that is TCP, and UDP where that is refused."),
]


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """What was typed; None where nothing was."""

    every: Annotated[float | None, typer.Option(metavar="SECONDS", help="Length of a window.")] = (
        None
    )
    max_frames: Annotated[
        int | None,
        typer.Option(min=1, max=256, help="Frames of a window looked at, at most."),
    ] = None
    choice: ChoiceOption = None
    json_schema: SchemaOption = None
    fps: FpsOption = None
    mode: Annotated[
        Mode | None,
        typer.Option(
            "--sampling",
            help="fps: so many a second. keyframes: those, for the least work. "
            "change: when the picture changes.",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="0..1", help="With --sampling change: what counts as one. Default: 0.1."
        ),
    ] = None
    min_interval: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="With keyframes and change: at most one in this time."
        ),
    ] = None
    max_interval: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS", help="With change: at least one in this time. Default: 10."
        ),
    ] = None
    transport: TransportOption = None
    history: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Keep frames for so long (12h, 7d), ever fewer with age. Default: the setting.",
        ),
    ] = None

    @property
    def sampling(self) -> "Sampling | None":
        """How frames are to be taken; None when nothing says so.

        Raises StreamerError(INVALID_REQUEST) for options that do not go together.
        """
        from streamer.domain import Sampling
        from streamer.validation import validated

        given = {
            "mode": self.mode.value if self.mode is not None else None,
            "fps": self.fps,
            "threshold": self.threshold,
            "min_interval": self.min_interval,
            "max_interval": self.max_interval,
        }
        fields = {key: value for key, value in given.items() if value is not None}
        return validated(Sampling, **fields) if fields else None

    @property
    def history_seconds(self) -> float | None:
        """How long frames are kept. Raises StreamerError(INVALID_REQUEST) for what is no time."""
        from streamer.times import parse_duration

        return None if self.history is None else parse_duration(self.history)

    def watches(self, client: "Client", prompts: Sequence[str]) -> "list[Watch]":
        """A watch for each of `prompts`. Raises StreamerError(PROMPT_EMPTY | INVALID_REQUEST)."""
        form = form_from(self.choice, self.json_schema)
        return [
            client.watch(prompt, window=self.every, max_frames=self.max_frames, form=form)
            for prompt in prompts
        ]

    def require_prompt(self, *names: str) -> None:
        """Raise a usage error when any of the options `names` was typed: there is no --prompt."""
        for name in names:
            if getattr(self, name) not in (None, []):
                option = "--" + name.replace("_", "-")
                raise typer.BadParameter(f"{option} goes with a question: give --prompt too.")


def with_stream_options(command: Callable[..., None]) -> Callable[..., None]:
    """`command` with every field of StreamOptions as an option, in place of its `options`."""
    shared = inspect.signature(StreamOptions).parameters
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        if parameter.name == "options":
            parameters += shared.values()
        else:
            parameters.append(parameter)

    @wraps(command)
    def expanded(**given: Any) -> None:
        options = StreamOptions(**{name: given.pop(name) for name in shared})
        command(options=options, **given)

    hints = get_type_hints(StreamOptions, include_extras=True)
    hints |= get_type_hints(command, include_extras=True)
    del hints["options"]
    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = hints
    return expanded
