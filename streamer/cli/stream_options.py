"""Options of `attach` and `edit` that set how a stream is read and asked about."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

import typer

from streamer.cli.context import renamed
from streamer.cli.response_format import ChoiceOption, SchemaOption, response_format_of
from streamer.limits import MAX_CLIP_FRAMES

if TYPE_CHECKING:
    from streamer.cli.remote import RemoteInstallation
    from streamer.domain.sampling import Sampling
    from streamer.domain.watch import Watch
    from streamer.service import Service


WindowOption = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        min=0.1,
        max=3600,
        help="Ask once per window of this length. Default: setting `window` (10).",
    ),
]
MaxFramesOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_CLIP_FRAMES,
        help="Look at no more than this number of frames per window. Default: setting "
        "`max_frames` (16).",
    ),
]
FpsOption = Annotated[
    float | None,
    typer.Option(
        min=0.01,
        max=60,
        help="Sample this number of frames per second. Default: setting `fps` (1).",
    ),
]
TransportOption = Annotated[
    Literal["auto", "tcp", "udp"] | None,
    typer.Option(
        help="Set the RTSP transport. auto: TCP, or UDP if the camera refuses TCP. Default: auto."
    ),
]
LiveOption = Annotated[
    bool | None,
    typer.Option(
        "--live/--recording",
        help="Treat the source as a live stream, which is reconnected, or as a recording, which "
        "ends. Default: detected when the source is opened.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class StreamOptions:
    """Options as typed; None for those that were not given."""

    window: WindowOption = None
    every: Annotated[float | None, typer.Option(metavar="SECONDS", hidden=True)] = None
    max_frames: MaxFramesOption = None
    choice: ChoiceOption = None
    json_schema: SchemaOption = None
    fps: FpsOption = None
    mode: Annotated[
        Literal["fps", "keyframes", "change"] | None,
        typer.Option(
            "--sampling",
            help="Choose frames by rate (fps), take key frames only, which needs the least "
            "decoding (keyframes), or take frames that differ from the last one (change). "
            "Default: fps.",
        ),
    ] = None
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="0..1",
            help="With --sampling change: take frames that differ by at least this share from the "
            "last one. Default: 0.1.",
        ),
    ] = None
    min_interval: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="With --sampling keyframes or change: take no two frames within this time. "
            "Default: 0.2.",
        ),
    ] = None
    max_interval: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            help="With --sampling change: take a frame after this time even without a change. "
            "Default: 10.",
        ),
    ] = None
    transport: TransportOption = None
    history: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Keep frames for this long (12h, 7d), fewer of them with age. Default: setting "
            "`history`.",
        ),
    ] = None
    retention_days: Annotated[
        float | None,
        typer.Option(
            metavar="DAYS", help="Keep results for this long. Default: setting `retention_days`."
        ),
    ] = None

    @property
    def sampling(self) -> "Sampling | None":
        """Sampling that the options describe, or None without any of them.

        Raises StreamerError(INVALID_REQUEST) for options that exclude each other.
        """
        from streamer.domain.sampling import Sampling
        from streamer.validation import validated

        given = {
            "mode": self.mode,
            "fps": self.fps,
            "threshold": self.threshold,
            "min_interval": self.min_interval,
            "max_interval": self.max_interval,
        }
        fields = {key: value for key, value in given.items() if value is not None}
        return validated(Sampling, **fields) if fields else None

    @property
    def history_seconds(self) -> float | None:
        """Seconds that frames are kept. Raises StreamerError(INVALID_REQUEST) for a bad length."""
        from streamer.times import parse_duration

        return None if self.history is None else parse_duration(self.history)

    def watches(
        self, client: "Service | RemoteInstallation", prompts: Sequence[str]
    ) -> "list[Watch]":
        """Make a watch for each prompt. Raises StreamerError(PROMPT_EMPTY | INVALID_REQUEST)."""
        response_format = response_format_of(self.choice, self.json_schema)
        return [
            client.watch(
                prompt,
                window=self.window,
                max_frames=self.max_frames,
                response_format=response_format,
            )
            for prompt in prompts
        ]

    def require_prompt(self, *names: str) -> None:
        """Raise typer.BadParameter if any option in `names` was given; call it without --prompt."""
        for name in names:
            if getattr(self, name) not in (None, []):
                option = "--" + name.replace("_", "-")
                raise typer.BadParameter(f"{option} needs a question: give --prompt too.")


def with_stream_options(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter `options` of `command` by one option per field of StreamOptions."""

    def made(typed: dict[str, Any]) -> StreamOptions:
        window = renamed(typed["window"], typed.pop("every"), "--every", "--window")
        return StreamOptions(**typed | {"window": window})

    return with_options(StreamOptions, made)(command)


def with_options(
    group: type, made: Callable[[dict[str, Any]], Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Replace the parameter `options` of a command by one option per field of the dataclass
    `group`; `made` makes its value from what was typed."""
    shared = inspect.signature(group).parameters

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.name == "options":
                parameters += shared.values()
            else:
                parameters.append(parameter)

        @wraps(command)
        def expanded(**given: Any) -> None:
            typed = {name: given.pop(name) for name in shared}
            command(options=made(typed), **given)

        hints = get_type_hints(group, include_extras=True)
        hints |= get_type_hints(command, include_extras=True)
        del hints["options"]
        expanded.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [p.replace(kind=p.KEYWORD_ONLY) for p in parameters]
        )
        expanded.__annotations__ = hints
        return expanded

    return decorate
