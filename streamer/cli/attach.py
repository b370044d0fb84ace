"""`streamer attach` and `streamer detach`."""

from typing import Annotated

import typer

from streamer.cli.context import Json, open_client, typed
from streamer.cli.stream_options import StreamOptions, Transport, with_stream_options


@with_stream_options
def attach(
    source: Annotated[
        str, typer.Argument(metavar="URL_OR_FILE", help="A camera's URL, a file, - for stdin.")
    ],
    *,
    name: Annotated[str | None, typer.Option(help="Default: from the URL or file.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Asked every window; may be repeated. Default: a caption."),
    ] = None,
    options: StreamOptions,
    watch: Annotated[
        bool, typer.Option("--watch/--no-watch", help="--no-watch: keep frames, ask nothing.")
    ] = True,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="--no-probe: attach without trying it first.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Attach a camera stream or a video file."""
    from rich.text import Text

    from streamer.client import CAPTION_PROMPT
    from streamer.terminal import console, json_lines, plain

    if prompt and not watch:
        raise typer.BadParameter("--prompt asks and --no-watch asks nothing: choose one.")
    if not prompt:
        options.require_prompt("choice", "json_schema")
    with open_client() as client:
        watches = options.watches(client, (prompt or [CAPTION_PROMPT]) if watch else [])
        sampling, history = options.sampling, options.history_seconds
        with console(stderr=True).status("Trying the source ..."):
            stream = client.attach(
                typed(source),
                name,
                sampling=sampling,
                watches=watches,
                transport=(options.transport or Transport.AUTO).value,
                history=history,
                probe=probe,
            )
        workers = client.jobs.workers()
    if as_json:
        json_lines([stream])
    else:
        line = Text.assemble(("Attached ", ""), (stream.name, "bold cyan"), f"  {stream.id}  ")
        console().print(line.append(f"{stream.state}  {plain(stream.url)}"), soft_wrap=True)
    notes = console(stderr=True)
    if not workers["ingest"]:
        notes.print("No ingest worker is running: it starts when one does (`streamer ingest`).")
    elif watches and not workers["clips"]:
        notes.print("No model worker is running: captions come when one does (`streamer worker`).")


def detach(
    stream: Annotated[str, typer.Argument(metavar="NAME_OR_ID")],
    as_json: Json = False,
) -> None:
    """Detach a stream; its results stay in the timeline."""
    from streamer.terminal import console, json_lines

    with open_client() as client:
        gone = client.detach(stream)
    if as_json:
        json_lines([gone])
    else:
        console().print(f"Detached {gone.name}  {gone.id}", soft_wrap=True)
