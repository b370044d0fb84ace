"""`streamer edit`: change a stream while it runs."""

from typing import Annotated

import typer

from streamer.cli.context import Json, NewModelOption, new_model, open_client, typed
from streamer.cli.stream_options import StreamOptions, with_stream_options


@with_stream_options
def edit(
    stream: Annotated[str, typer.Argument(metavar="NAME_OR_ID", help="Stream to change.")],
    *,
    url: Annotated[
        str | None,
        typer.Option(
            help="Set a new URL or password of a live stream. -: read it from standard input."
        ),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Rename the stream.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt", help="Replace all questions with this one. Repeat for more questions."
        ),
    ] = None,
    options: StreamOptions,
    paused: Annotated[
        bool | None, typer.Option("--pause/--resume", help="Pause or resume the stream.")
    ] = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe", help="Open the new --url and decode one frame before using it."
        ),
    ] = True,
    model: NewModelOption = None,
    as_json: Json = False,
) -> None:
    """Change an attached stream while it runs. Nothing has to be restarted.

    Options left out keep their values; the defaults below apply to new streams and questions.
    """
    from streamer.terminal import console, json_lines

    if not prompt:
        options.require_prompt("window", "max_frames", "choice", "json_schema")
    sampling, history, transport = options.sampling, options.history_seconds, options.transport
    days = options.retention_days
    given = (url, name, sampling, transport, history, days, prompt, paused, model)
    if all(option is None for option in given):
        raise typer.BadParameter("Nothing to change: give --url, --name, --fps or another option.")
    with open_client() as client:
        changed = client.edit(
            stream,
            source=None if url is None else typed(url),
            name=name,
            sampling=sampling,
            transport=transport,
            watches=options.watches(client, prompt) if prompt else None,
            history=history,
            retention_days=options.retention_days,
            paused=paused,
            probe=probe,
            model=new_model(model),
        )
    if as_json:
        json_lines([changed])
    else:
        console().print(f"Changed {changed.name}  {changed.id}", soft_wrap=True)
