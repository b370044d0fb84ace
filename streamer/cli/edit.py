"""`streamer edit`: change a stream while it runs."""

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
    TransportOption,
    sampling_from,
)


def edit(
    stream: Annotated[str, typer.Argument(metavar="NAME_OR_ID")],
    url: Annotated[
        str | None, typer.Option(help="Another URL or password, of a live stream.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    fps: FpsOption = None,
    sampling: ModeOption = None,
    threshold: ThresholdOption = None,
    min_interval: MinIntervalOption = None,
    max_interval: MaxIntervalOption = None,
    transport: TransportOption = None,
    history: HistoryOption = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", help="Asked from now on instead of what was; may be repeated."),
    ] = None,
    every: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="With --prompt: length of a window.")
    ] = None,
    choice: ChoiceOption = None,
    json_schema: SchemaOption = None,
    paused: Annotated[
        bool | None, typer.Option("--pause/--resume", help="Neither read it nor ask, or go on.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="--no-probe: take --url without trying it.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Change an attached stream; it need not be restarted, nor need anything else."""
    from streamer.cli.output import console, json_lines
    from streamer.times import parse_duration

    taken = sampling_from(sampling, fps, threshold, min_interval, max_interval)
    if all(o is None for o in (url, name, taken, transport, history, prompt, paused)):
        raise typer.BadParameter("Nothing is to be changed: give --url, --name, --fps or the like.")
    if every is not None and prompt is None:
        raise typer.BadParameter("--every is the window of a question: give --prompt too.")
    form = form_from(choice, json_schema)
    if form is not None and prompt is None:
        raise typer.BadParameter("--choice and --json-schema answer a question: give --prompt too.")
    with open_client() as client:
        watches = [client.watch(text, window=every, form=form) for text in prompt or ()] or None
        changed = client.edit(
            stream,
            source=None if url is None else typed(url),
            name=name,
            sampling=taken,
            transport=transport.value if transport is not None else None,
            watches=watches,
            history=None if history is None else parse_duration(history),
            paused=paused,
            probe=probe,
        )
    if as_json:
        json_lines([changed])
    else:
        console().print(f"Changed {changed.name}  {changed.id}", soft_wrap=True)
