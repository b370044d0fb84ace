"""What the global options said, and what commands open with it."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from streamer.client import Client
    from streamer.settings import Settings


@dataclass
class GlobalOptions:
    """The options before the command."""

    config: Path | None = None
    debug: bool = False
    redis_url: str | None = None


options = GlobalOptions()

Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON object a line, and nothing else.")
]

QuantizeOption = Annotated[
    str | None,
    typer.Option(metavar="int8|int4", help="Weights in fewer bits, for less memory."),
]


def typed(source: str) -> str:
    """The source that was given; `-` is the first line of standard input, for a URL with a
    password that should be neither in the list of processes nor in the shell's history."""
    return sys.stdin.readline().strip() if source == "-" else source


def open_settings(**overrides: Any) -> "Settings":
    """The settings after the global options; raises StreamerError(SETTINGS_INVALID)."""
    from streamer.settings import load_settings

    overrides.setdefault("redis_url", options.redis_url)
    return load_settings(options.config, **overrides)


def open_client(settings: "Settings | None" = None) -> "Client":
    """A client of the installation that the settings name."""
    from streamer.client import Client

    return Client(settings or open_settings())
