"""`streamer watch`: add, list, change and remove the standing questions of a stream."""

from typing import TYPE_CHECKING, Annotated

import typer

from streamer.cli.alert_options import AlertOptions, with_alert_options
from streamer.cli.context import Json, ModelOption, NewModelOption, new_model, open_client
from streamer.cli.response_format import ChoiceOption, SchemaOption, response_format_of
from streamer.cli.stream_options import MaxFramesOption
from streamer.limits import MAX_ANSWER_TOKENS

if TYPE_CHECKING:
    from streamer.domain.watch import Watch

StreamArgument = Annotated[str, typer.Argument(metavar="STREAM", help="Name or id of the stream.")]
WatchArgument = Annotated[
    str, typer.Argument(metavar="WATCH", help="Id of the watch; `streamer watch list` shows it.")
]
EveryOption = Annotated[
    float | None,
    typer.Option(
        "--window",
        "--every",
        metavar="SECONDS",
        min=0.1,
        max=3600,
        help="Ask once per window of this length. Default: setting `window` (10).",
    ),
]
MaxTokensOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=MAX_ANSWER_TOKENS,
        help="Limit each answer to this number of tokens. Default: setting `max_tokens` (128).",
    ),
]


@with_alert_options
def watch_add(
    stream: StreamArgument,
    question: Annotated[
        str, typer.Argument(metavar="QUESTION", help="Question to ask about every window.")
    ],
    window: EveryOption = None,
    max_frames: MaxFramesOption = None,
    max_tokens: MaxTokensOption = None,
    choice: ChoiceOption = None,
    json_schema: SchemaOption = None,
    model: ModelOption = None,
    *,
    options: AlertOptions,
    as_json: Json = False,
) -> None:
    """Ask one more question about every window of a stream.

    With --alert the question is answered with yes or no, and yes opens an incident.
    """
    response_format = response_format_of(choice, json_schema)
    options.require_alert()
    alert = options.rule()
    with open_client() as client:
        watch = client.watch(
            question,
            window=window,
            max_frames=max_frames,
            max_tokens=max_tokens,
            response_format=response_format,
            alert=alert,
            model=model,
        )
        _report("Added", client.watches.add(stream, watch), as_json)


def watch_list(
    stream: Annotated[
        str | None,
        typer.Argument(metavar="STREAM", help="Name or id of the stream. Default: all streams."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the watches of one stream, or of all."""
    from rich.text import Text

    from streamer.cli.streams import watch_line
    from streamer.terminal import console, json_lines, print_hanging

    with open_client() as client:
        found = client.streams() if stream is None else [client.stream(stream)]
    if as_json:
        json_lines(watch for each in found for watch in each.watches)
        return
    out = console()
    width = max((len(each.name) for each in found), default=0)
    for each in found:
        for watch in each.watches:
            print_hanging(out, Text(f"{each.name:<{width}}  ", "bold cyan"), watch_line(watch))


@with_alert_options
def watch_edit(
    stream: StreamArgument,
    watch: WatchArgument,
    prompt: Annotated[str | None, typer.Option(help="Ask this from now on.")] = None,
    window: EveryOption = None,
    max_frames: MaxFramesOption = None,
    max_tokens: MaxTokensOption = None,
    choice: ChoiceOption = None,
    json_schema: SchemaOption = None,
    model: NewModelOption = None,
    *,
    options: AlertOptions,
    as_json: Json = False,
) -> None:
    """Change a watch, which keeps its id. Options left out keep their values."""
    response_format = response_format_of(choice, json_schema)
    alert = options.rule()
    if all(
        o is None for o in (prompt, window, max_frames, max_tokens, response_format, alert, model)
    ):
        raise typer.BadParameter("Nothing to change: give --prompt, --window or another option.")
    with open_client() as client:
        changed = client.watches.edit(
            stream,
            watch,
            prompt=prompt,
            window=window,
            max_frames=max_frames,
            max_tokens=max_tokens,
            response_format=response_format,
            alert=alert,
            model=new_model(model),
        )
    _report("Changed", changed, as_json)


def watch_remove(stream: StreamArgument, watch: WatchArgument, as_json: Json = False) -> None:
    """Remove a watch. Its results stay in the timeline."""
    with open_client() as client:
        _report("Removed", client.watches.remove(stream, watch), as_json)


def _report(done: str, watch: "Watch", as_json: bool) -> None:
    from rich.text import Text

    from streamer.cli.streams import watch_line
    from streamer.terminal import console, json_lines, print_hanging

    if as_json:
        json_lines([watch])
    else:
        print_hanging(console(), Text(f"{done} "), watch_line(watch))
