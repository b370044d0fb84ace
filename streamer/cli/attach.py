"""`streamer attach` and `streamer detach`: add and remove streams."""

from typing import Annotated

import typer

from streamer.cli.context import Json, ModelOption, open_client, typed
from streamer.cli.stream_options import LiveOption, StreamOptions, with_stream_options


@with_stream_options
def attach(
    source: Annotated[
        str,
        typer.Argument(
            metavar="URL_OR_FILE",
            help="URL of a camera, or a video file. -: read the URL from standard input.",
        ),
    ],
    *,
    name: Annotated[
        str | None,
        typer.Option(help="Name the stream. Default: a name made from the URL or file name."),
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            "--prompt",
            help="Ask this about every window. Repeat for more questions. Default: describe the "
            "scene.",
        ),
    ] = None,
    options: StreamOptions,
    watch: Annotated[
        bool,
        typer.Option("--watch/--no-watch", help="Ask about every window, or only keep frames."),
    ] = True,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe", help="Open the source and decode one frame before attaching it."
        ),
    ] = True,
    live: LiveOption = None,
    model: ModelOption = None,
    endpoint_reference: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Id of the camera at every address, as `streamer discover` shows it. A stream "
            "that is attached with it gets the new address.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Attach a camera stream or a video file."""
    from rich.text import Text

    from streamer.service import CAPTION_PROMPT
    from streamer.terminal import console, json_lines, plain, print_hanging

    if prompt and not watch:
        raise typer.BadParameter("--prompt and --no-watch exclude each other: use one of them.")
    if not prompt:
        options.require_prompt("choice", "json_schema")
    with open_client() as client:
        watches = options.watches(client, (prompt or [CAPTION_PROMPT]) if watch else [])
        sampling, history = options.sampling, options.history_seconds
        with console(stderr=True).status("Opening the source ..."):
            stream = client.attach(
                typed(source),
                name,
                sampling=sampling,
                watches=watches,
                transport=options.transport or "auto",
                history=history,
                retention_days=options.retention_days,
                probe=probe,
                live=live,
                model=model,
                endpoint_reference=endpoint_reference,
            )
        workers, loading = client.jobs.workers(), client.jobs.model_loading()
    if as_json:
        json_lines([stream])
    else:
        line = Text.assemble(("Attached ", ""), (stream.name, "bold cyan"), f"  {stream.id}  ")
        print_hanging(console(), line.append(f"{stream.state}  "), Text(plain(stream.url)))
    notes = console(stderr=True)
    if not workers["ingest"]:
        notes.print(
            "No ingest worker is running: start one with `streamer ingest` to read the stream."
        )
    elif watches and not workers["clips"] and loading:
        notes.print("The model is loading: captions begin when it is ready.")
    elif watches and not workers["clips"]:
        notes.print("No model worker is running: start one with `streamer worker` to get captions.")


def detach(
    stream: Annotated[str, typer.Argument(metavar="NAME_OR_ID", help="Stream to detach.")],
    as_json: Json = False,
) -> None:
    """Detach a stream. Its results stay in the timeline."""
    from streamer.terminal import console, json_lines

    with open_client() as client:
        gone = client.detach(stream)
    if as_json:
        json_lines([gone])
    else:
        console().print(f"Detached {gone.name}  {gone.id}", soft_wrap=True)
