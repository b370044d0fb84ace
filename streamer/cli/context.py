"""Global options, and the settings and client that commands open with them."""

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
    """Values of the options before the command."""

    config: Path | None = None
    debug: bool = False
    redis_url: str | None = None


options = GlobalOptions()

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON Lines: one object per line and nothing else.")
]

QuantizeOption = Annotated[
    str | None,
    typer.Option(
        metavar="int8|int4",
        help="Store the weights in 8 or 4 bits to save memory. Default: full precision.",
    ),
]


def typed(source: str) -> str:
    """Return the source that was typed; for `-`, the first line of standard input.

    Standard input keeps a URL with a password out of the process list and the shell's history.
    """
    return sys.stdin.readline().strip() if source == "-" else source


def open_settings(**overrides: Any) -> "Settings":
    """Load the settings that the global options select. Raises StreamerError(SETTINGS_INVALID)."""
    from streamer.settings import load_settings

    overrides.setdefault("redis_url", options.redis_url)
    return load_settings(options.config, **overrides)


def open_client(settings: "Settings | None" = None) -> "Client":
    """Connect to the installation that the settings name. Raises StreamerError."""
    from streamer.client import Client

    return Client(settings or open_settings())


def warn_of_missing(client: "Client") -> None:
    """Say on stderr which parts of the installation are missing: what is listed may be old."""
    from streamer.terminal import console

    for part in client.health.missing():
        console(stderr=True).print(f"Warning: {part.message}", style="yellow", soft_wrap=True)
