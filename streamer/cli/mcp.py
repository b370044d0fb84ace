"""`streamer mcp`: give an agent on this machine the tools of the service."""

from typing import Annotated

import typer

from streamer.cli.context import open_local_client


def mcp(
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Offer only the tools that change nothing.")
    ] = False,
) -> None:
    """Serve the tools for AI agents on standard input and output, by the MCP protocol."""
    from streamer.errors import ErrorCode, StreamerError

    try:
        from streamer.agents.server import make_server
    except ImportError:
        raise StreamerError(
            ErrorCode.SETTINGS_INVALID,
            "The tools for agents are not installed: run `pip install 'nvila-streamer[mcp]'`.",
        ) from None
    with open_local_client("mcp") as client:
        make_server(client, operate=not read_only).run("stdio")
