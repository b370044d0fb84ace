"""`streamer attach` and `streamer detach`."""

from typing import Annotated

import typer

from streamer.cli.answer_form import ChoiceOption, SchemaOption, form_from
from streamer.cli.context import Json, open_client, typed
from streamer.cli.sampling import (
    FpsOption,
    HistoryOption,
    MaxIntervalOption,
    MinIntervalOption,
    ModeOption,
    ThresholdOption,
    Transport,
    TransportOption,
    sampling_from,
)


def attach(
    source: Annotated[
        str, typer.Argument(metavar="URL_OR_FILE", help="A camera's URL, a file, - for stdin.")
    ],
    name: Annotated[str | None, typer.Option(help="Default: from the URL or file.")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Asked every window; may be repeated. Default: a caption."),
    ] = None,
    every: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Length of a window.")
    ] = None,
    fps: FpsOption = None,
    sampling: ModeOption = None,
    threshold: ThresholdOption = None,
    min_interval: MinIntervalOption = None,
    max_interval: MaxIntervalOption = None,
    transport: TransportOption = None,
    history: HistoryOption = None,
    max_frames: Annotated[
        int | None, typer.Option(min=1, max=256, help="Frames of a window looked at, at most.")
    ] = None,
    choice: ChoiceOption = None,
    json_schema: SchemaOption = None,
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

    from streamer.cli.output import console, json_lines, plain
    from streamer.client import CAPTION_PROMPT
    from streamer.times import parse_duration

    if prompt and not watch:
        raise typer.BadParameter("--prompt asks and --no-watch asks nothing: choose one.")
    form = form_from(choice, json_schema)
    if form is not None and not prompt:
        raise typer.BadParameter("--choice and --json-schema answer a question: give --prompt too.")
    with open_client() as client:
        prompts = (prompt or [CAPTION_PROMPT]) if watch else []
        watches = [
            client.watch(text, window=every, max_frames=max_frames, form=form) for text in prompts
        ]
        taken = sampling_from(sampling, fps, threshold, min_interval, max_interval)
        with console(stderr=True).status("Trying the source ..."):
            stream = client.attach(
                typed(source),
                name,
                sampling=taken,
                watches=watches,
                transport=(transport or Transport.AUTO).value,
                history=None if history is None else parse_duration(history),
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
    from streamer.cli.output import console, json_lines

    with open_client() as client:
        gone = client.detach(stream)
    if as_json:
        json_lines([gone])
    else:
        console().print(f"Detached {gone.name}  {gone.id}", soft_wrap=True)
