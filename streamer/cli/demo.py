"""`streamer demo`: the whole service at work, in under three minutes."""

from typing import Annotated

import typer

from streamer.cli.context import open_settings


def demo(
    seconds: Annotated[
        float, typer.Option(min=1, max=86400, help="How long it takes in all, about.")
    ] = 90.0,
    source: Annotated[
        list[str] | None,
        typer.Option(metavar="URL_OR_FILE", help="Your own, instead of the rendered street."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="PATH_OR_HUB_ID", help="Your own, instead of the little demo model."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave it running after the show, until Ctrl-C.")
    ] = False,
) -> None:
    """Show it all: a camera and a file in, captions and answers out."""
    from streamer.demo.show import run

    raise typer.Exit(run(open_settings(), seconds, source or [], model, keep))
