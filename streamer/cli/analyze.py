"""`streamer analyze`: caption a recording window by window, by the same path as a stream."""

from typing import TYPE_CHECKING, Annotated

import typer

from streamer.cli.context import Json, Verbose, open_local_client
from streamer.cli.report import INTERRUPTED
from streamer.cli.response_format import ChoiceOption, SchemaOption, response_format_of
from streamer.cli.stream_options import FpsOption, WindowOption

if TYPE_CHECKING:
    from streamer.cli.recording_analysis import Analysis
    from streamer.local.signals import StopSignals


def analyze(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="Video file or HTTP URL of a recording.")
    ],
    prompt: Annotated[
        str | None, typer.Option(help="Ask this about every window. Default: describe the scene.")
    ] = None,
    window: WindowOption = None,
    fps: FpsOption = None,
    choice: ChoiceOption = None,
    json_schema: SchemaOption = None,
    recording: Annotated[
        bool,
        typer.Option(
            "--recording",
            help="Treat the source as a recording, which ends, although it looks like a stream.",
        ),
    ] = False,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Caption a recording window by window, then print its timeline."""
    from streamer.cli.recording_analysis import Analysis
    from streamer.limits import check_prompt
    from streamer.local.signals import Interrupted, StopSignals
    from streamer.service import CAPTION_PROMPT
    from streamer.terminal import console

    prompt = CAPTION_PROMPT if prompt is None else prompt
    check_prompt(prompt)
    response_format = response_format_of(choice, json_schema)
    with StopSignals() as stop, open_local_client("analyze") as client:
        live = False if recording else None
        client.require_worker()
        client.require_ingest()
        # opening may block, and is safe to abandon
        stop.call(lambda: client.admission.require_recording(file, live))
        stop.call(lambda: client.probe(file, live=False))
        last_id = client.queue.last_id()
        stream = client.analyze(
            file, prompt, window, fps, response_format=response_format, probe=False, live=False
        )
        notes = console(stderr=True)
        analysis = Analysis(
            client, stream, last_id, say=lambda note: notes.print(note, soft_wrap=True)
        )
        try:
            _show(analysis, stop, as_json, verbose)
        except Interrupted:
            raise typer.Exit(INTERRUPTED) from None
        finally:
            client.detach(stream.id)
    _judge(analysis, as_json)


def _show(analysis: "Analysis", stop: "StopSignals", as_json: bool, verbose: bool) -> None:
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from streamer.terminal import console, json_lines, print_result

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}% {task.fields[windows]} windows"),
        TimeElapsedColumn(),
        console=console(stderr=True),
    )
    with bar:
        task = bar.add_task(analysis.stream.name, total=None, windows=0)
        while not analysis.finished:
            stop.check()
            fresh = analysis.advance(block=0.25)
            if as_json:
                json_lines(analysis.in_order())
            else:
                for result in fresh:
                    print_result(bar.console, result, costs=verbose)
            bar.update(
                task,
                total=analysis.duration,
                completed=analysis.done_seconds,
                windows=len(analysis.results),
            )


def _judge(analysis: "Analysis", as_json: bool) -> None:
    from rich.text import Text

    from streamer.terminal import answer_text, console, print_hanging, span

    trouble = analysis.trouble()
    if not as_json and analysis.results:
        out = console()
        width = max(len(span(result)) for result in analysis.timeline)
        out.print()
        for result in analysis.timeline:
            head = Text(f"{span(result):<{width}}  ", "dim")
            print_hanging(out, head, Text(answer_text(result), "red" if result.error else ""))
    if trouble is not None:
        raise trouble
