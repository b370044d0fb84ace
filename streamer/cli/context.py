"""Global options, and the settings and client that commands open with them."""

import inspect
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from nvila_core.quantization import QUANTIZATIONS

if TYPE_CHECKING:
    from streamer.cli.remote import RemoteInstallation
    from streamer.domain.stream import Unchanged
    from streamer.service import Service
    from streamer.settings import Settings
    from streamer.times import When


@dataclass
class GlobalOptions:
    """Values of the options that every command takes, before or after its name."""

    config: Path | None = None
    debug: bool = False
    redis_url: str | None = None


options = GlobalOptions()

DEFAULT_MODEL = "default"
"""What --model calls the default model."""

_PANEL = "Options of every command"

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Read settings from this YAML file.",
        rich_help_panel=_PANEL,
    ),
]
RedisOption = Annotated[
    str | None,
    typer.Option(
        "--redis-url",
        metavar="URL",
        help="Connect to this Redis instead of STREAMER_REDIS_URL.",
        rich_help_panel=_PANEL,
    ),
]
DebugOption = Annotated[
    bool,
    typer.Option("--debug", help="Show tracebacks of errors.", rich_help_panel=_PANEL),
]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show also tiles, vision tokens and milliseconds."),
]
Json = Annotated[
    bool, typer.Option("--json", help="Print JSON Lines: one object per line and nothing else.")
]

ModelOption = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Let this model answer. Default: the default model."),
]
NewModelOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Let this model answer. `default` removes the choice of a model."
    ),
]
BackendOption = Annotated[
    str | None,
    typer.Option(
        metavar="nvila|openai",
        help="Run the model here, or ask a server with OpenAI's API. Default: nvila.",
    ),
]
BaseUrlOption = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Ask the server at this address, such as http://127.0.0.1:8000/v1. Its key: "
        "STREAMER_MODEL_API_KEY.",
    ),
]

QuantizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="|".join(QUANTIZATIONS),
        help="Store the weights in 8 or 4 bits to save memory. Default: full precision. FP8 needs "
        "a GPU that multiplies it.",
    ),
]

GpusOption = Annotated[
    str | None,
    typer.Option(
        metavar="all|LIST",
        help="Run one model worker for each of these GPUs: all, or numbers or UUIDs such as 0,1. "
        "Each is restarted when it ends; a GPU that fails too often is out of service for a "
        "while.",
    ),
]


def with_global_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let `command` take the global options too; those given there win over those before it."""

    def given(
        *, config: ConfigOption = None, redis_url: RedisOption = None, debug: DebugOption = False
    ) -> None:
        options.config = config or options.config
        options.redis_url = redis_url or options.redis_url
        options.debug = debug or options.debug

    shared = inspect.signature(given).parameters

    @wraps(command)
    def expanded(**values: Any) -> None:
        given(**{name: values.pop(name) for name in shared})
        command(**values)

    own = inspect.signature(command).parameters.values()
    hints = get_type_hints(command, include_extras=True) | get_type_hints(
        given, include_extras=True
    )
    expanded.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=p.KEYWORD_ONLY) for p in (*own, *shared.values())]
    )
    expanded.__annotations__ = hints
    return expanded


def renamed(value: Any, old_value: Any, old: str, new: str) -> Any:
    """Return the value of an option that was renamed, with a note if the old name was used."""
    if old_value is None:
        return value
    typer.echo(f"Note: {old} is now called {new}; the next release removes {old}.", err=True)
    return old_value if value is None else value


def new_model(name: str | None) -> "str | Unchanged | None":
    """Return the model that --model of a change names; None for `default`."""
    from streamer.domain.stream import UNCHANGED

    return UNCHANGED if name is None else None if name == DEFAULT_MODEL else name


def typed_range(since: str | None, until: str | None) -> "tuple[When, When]":
    """Return the times that were typed: local ones, such as `16:00`, as moments; relative ones,
    such as `-10m`, as they are, because they count from the clock of the service.

    Raises StreamerError(INVALID_REQUEST) for text that is not a time.
    """
    from streamer.domain.timestamp import utc_now
    from streamer.times import counts_from_now, parse_local_time

    now = utc_now()
    start = None if since is None else parse_local_time(since, now)
    end = None if until is None else parse_local_time(until, now, after=start)
    relative = [text is not None and counts_from_now(text) for text in (since, until)]
    return (since if relative[0] else start), (until if relative[1] else end)


def typed(source: str) -> str:
    """Return the source that was typed; for `-`, the first line of standard input.

    Standard input keeps a URL with a password out of the process list and the shell's history.
    """
    # bytes, because the name of a file need not be UTF-8
    return os.fsdecode(sys.stdin.buffer.readline()).strip() if source == "-" else source


def open_settings(**overrides: Any) -> "Settings":
    """Load the settings that the global options select. Raises StreamerError(SETTINGS_INVALID)."""
    from streamer.settings import load_settings

    overrides.setdefault("redis_url", options.redis_url)
    return load_settings(options.config, **overrides)


def require_model() -> None:
    """Raise StreamerError(MODEL_FAILED) unless the packages that run a model are installed."""
    from nvila_core.model_packages import ModelNotInstalled, require_model_packages
    from streamer.errors import ErrorCode, StreamerError

    try:
        require_model_packages()
    except ModelNotInstalled as error:
        raise StreamerError(ErrorCode.MODEL_FAILED, str(error)) from None


def open_client() -> "Service | RemoteInstallation":
    """Connect to the installation that the settings name: by its API, with `api_url`, or by Redis.

    Raises StreamerError.
    """
    settings = open_settings()
    if settings.api_url is None:
        from streamer.service import Service

        return Service(settings)

    from streamer.cli.remote import RemoteInstallation
    from streamer.http_client import Client

    return RemoteInstallation(Client(settings.api_url, api_key=settings.api_key))


def open_local_client(command: str) -> "Service":
    """Connect to the installation by Redis, as `command` needs it. Raises StreamerError."""
    from streamer.service import Service

    settings = open_settings()
    require_local(settings, command)
    return Service(settings)


def require_local(settings: "Settings", command: str) -> None:
    """Raise StreamerError(INVALID_REQUEST) if `api_url` names a service elsewhere: `command` does
    not work through the API."""
    from streamer.errors import ErrorCode, StreamerError

    if settings.api_url is not None:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"`streamer {command}` does not work through the API: run it where the service runs, "
            "without STREAMER_API_URL.",
        )


def warn_of_missing(client: "Service | RemoteInstallation") -> None:
    """Say on stderr which parts of the installation are missing: what is listed may be old."""
    from rich.text import Text

    from streamer.terminal import console, print_hanging

    for part in client.health.missing():
        head, body = Text("Warning: ", "yellow"), Text(part.message or "", "yellow")
        print_hanging(console(stderr=True), head, body)
