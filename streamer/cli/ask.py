"""`streamer ask`: one question about a stream, now or in the past."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from streamer.cli.answer_form import ChoiceOption, SchemaOption, form_from
from streamer.cli.context import Json, open_client
from streamer.errors import ErrorCode, StreamerError

if TYPE_CHECKING:
    from streamer.client import Client
    from streamer.domain import Query


def ask(
    stream: Annotated[
        str | None,
        typer.Argument(metavar="STREAM", help="May be left out when only one is attached."),
    ] = None,
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="What you want to know.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Beginning of a past range: -10m, -90s, or RFC 3339.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Its end; default: now.")] = None,
    frames: Annotated[
        int | None, typer.Option(min=1, max=256, help="Frames to look at, at most.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Tokens of the answer, at most.")
    ] = None,
    choice: ChoiceOption = None,
    json_schema: SchemaOption = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="--no-wait: print the query's id and leave.")
    ] = True,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait.")] = 120.0,
    as_json: Json = False,
) -> None:
    """Ask a question about a stream and print the answer."""
    from streamer.terminal import console, json_lines
    from streamer.validation import check_prompt

    if question is None:  # of one argument alone, that is the question
        stream, question = None, stream or ""
    check_prompt(question)
    form = form_from(choice, json_schema)
    with open_client() as client:
        if wait:
            client.require_worker()
        query = client.ask(
            question,
            stream,
            since=since,
            until=until,
            max_frames=frames,
            max_tokens=max_tokens,
            form=form,
        )
        if wait:
            query = _answered(client, query, timeout)
    if as_json:
        json_lines([query])
    elif query.result is None:
        console().print(f"Asked {query.stream_name}: {query.id} is {query.status}.", soft_wrap=True)
    elif query.result.error is None:
        _print_answer(query)
    if query.result is not None and query.result.error is not None:
        raise StreamerError(query.result.error.code, query.result.error.message)


def _answered(client: "Client", query: "Query", timeout: float) -> "Query":
    from streamer.terminal import console

    deadline = time.monotonic() + timeout
    try:
        with console(stderr=True).status(f"{query.stream_name} is being looked at ..."):
            while query.result is None and (left := deadline - time.monotonic()) > 0:
                query = client.query(query.id, wait=min(left, 1.0))
    except KeyboardInterrupt:
        client.cancel(query.id)
        raise
    if query.result is None:
        raise StreamerError(
            ErrorCode.TIMEOUT,
            f"No answer within {timeout:g} s: {query.id} is {query.status} and its answer will "
            "appear in `streamer results`; wait longer with --timeout.",
        )
    return query


def _print_answer(query: "Query") -> None:
    from rich.text import Text

    from streamer.terminal import clock, console, cost, said

    assert query.result is not None
    result = query.result
    when = clock(query.end)
    if query.start != query.end:
        when = f"{clock(query.start)} to {when}, {result.frames} frames"
    out = console()
    out.print(Text(said(result)), soft_wrap=True)
    out.print(Text(f"{query.stream_name} at {when} · {cost(result)}", "dim"), soft_wrap=True)
