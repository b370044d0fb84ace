"""`streamer demo`: show the whole service at work, in under three minutes."""

from typing import Annotated

import typer

from streamer.cli.context import open_settings, require_model


def demo(
    seconds: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1, max=86400, help="Run the demo for about this long."),
    ] = 90.0,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL_OR_FILE",
            help="Show this source instead of a rendered street. Repeat for more sources.",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="PATH_OR_HUB_ID", help="Use this model instead of the small demo model."
        ),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep the service running after the demo, until Ctrl-C.")
    ] = False,
) -> None:
    """Show the whole service: a camera and a file in, captions and answers out."""
    from streamer.demo.show import run_demo

    require_model()
    raise typer.Exit(run_demo(open_settings(), seconds, source or [], model, keep))
