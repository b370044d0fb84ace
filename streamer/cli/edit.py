"""`streamer edit`: change a stream while it runs."""

from typing import Annotated

import typer

from streamer.cli.context import Json, open_client, typed
from streamer.cli.stream_options import StreamOptions, with_stream_options


@with_stream_options
def edit(
    stream: Annotated[str, typer.Argument(metavar="NAME_OR_ID")],
    *,
    url: Annotated[
        str | None, typer.Option(help="Another URL or password, of a live stream.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Asked from now on instead of what was; may be repeated."),
    ] = None,
    options: StreamOptions,
    paused: Annotated[
        bool | None, typer.Option("--pause/--resume", help="Neither read it nor ask, or go on.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="--no-probe: take --url without trying it.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Change an attached stream; it need not be restarted, nor need anything else."""
    from streamer.terminal import console, json_lines

    if not prompt:
        options.require_prompt("every", "max_frames", "choice", "json_schema")
    sampling, history, transport = options.sampling, options.history_seconds, options.transport
    if all(o is None for o in (url, name, sampling, transport, history, prompt, paused)):
        raise typer.BadParameter("Nothing is to be changed: give --url, --name, --fps or the like.")
    with open_client() as client:
        changed = client.edit(
            stream,
            source=None if url is None else typed(url),
            name=name,
            sampling=sampling,
            transport=transport.value if transport is not None else None,
            watches=options.watches(client, prompt) if prompt else None,
            history=history,
            paused=paused,
            probe=probe,
        )
    if as_json:
        json_lines([changed])
    else:
        console().print(f"Changed {changed.name}  {changed.id}", soft_wrap=True)
