"""What the global options said, and what commands open with it."""

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


def open_settings(**overrides: Any) -> "Settings":
    """The settings after the global options; raises StreamerError(SETTINGS_INVALID)."""
    from streamer.settings import load_settings

    overrides.setdefault("redis_url", options.redis_url)
    return load_settings(options.config, **overrides)


def open_client(settings: "Settings | None" = None) -> "Client":
    """A client of the installation that the settings name."""
    from streamer.client import Client

    return Client(settings or open_settings())
