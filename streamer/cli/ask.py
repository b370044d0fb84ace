"""`streamer ask`: ask one question about a stream, now or in the past."""

import time
from typing import TYPE_CHECKING, Annotated

import typer

from streamer.cli.context import Json, open_client, renamed, typed_range
from streamer.cli.response_format import ChoiceOption, SchemaOption, response_format_of
from streamer.errors import ErrorCode, StreamerError

if TYPE_CHECKING:
    from streamer.client import Client
    from streamer.domain import Query
    from streamer.question import Question


def ask(
    stream: Annotated[
        str | None,
        typer.Argument(
            metavar="STREAM",
            help="Name or id of the stream. Optional if only one is attached.",
        ),
    ] = None,
    question: Annotated[
        str | None, typer.Argument(metavar="QUESTION", help="Question to ask.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Ask about the past, from this time on: -10m, 16:00 or RFC 3339."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="End the range of --since at this time: -5m, 16:30 or RFC 3339. Default: now.",
        ),
    ] = None,
    max_frames: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help="Look at no more than this number of frames. Default: 1; with --since, setting "
            "`max_frames` (16).",
        ),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, max=256, hidden=True)] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=4096,
            help="Limit the answer to this number of tokens. Default: setting `max_tokens` (128).",
        ),
    ] = None,
    choice: ChoiceOption = None,
    json_schema: SchemaOption = None,
    stale_ok: Annotated[
        bool,
        typer.Option(
            "--stale-ok",
            help="Answer from the newest picture even if it is old, and say how old it is.",
        ),
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait/--no-wait", help="Wait for the answer, or print the query's id and exit."
        ),
    ] = True,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="Wait no longer than this for the answer."),
    ] = 120.0,
    as_json: Json = False,
) -> None:
    """Ask a question about a stream and print the answer."""
    from streamer.question import Question
    from streamer.terminal import console, json_lines
    from streamer.validation import validated

    if question is None:  # a single argument is the question
        stream, question = None, stream or ""
    start, end = typed_range(since, until)
    asked = validated(
        Question,
        prompt=question,
        stream=stream,
        since=start,
        until=end,
        max_frames=renamed(max_frames, frames, "--frames", "--max-frames"),
        max_tokens=max_tokens,
        response_format=response_format_of(choice, json_schema),
        stale_ok=stale_ok,
    )
    with open_client() as client:
        if wait:
            client.require_worker()
        query = _submit(client, asked)
        if wait:
            query = _answered(client, query, timeout)
    if as_json:
        json_lines([query])
    elif query.result is None:
        console().print(
            f"Asked {query.stream_name}: query {query.id} is {query.status}.", soft_wrap=True
        )
    elif query.result.error is None:
        _print_answer(query)
    if query.result is not None and query.result.error is not None:
        raise StreamerError(query.result.error.code, query.result.error.message)


def _submit(client: "Client", asked: "Question") -> "Query":
    from streamer.queries import NotYet
    from streamer.terminal import console

    try:
        return client.submit(asked, wait=0.0)
    except NotYet:
        with console(stderr=True).status("Waiting for the first picture ..."):
            return client.submit(asked)


def _answered(client: "Client", query: "Query", timeout: float) -> "Query":
    from streamer.terminal import console

    deadline = time.monotonic() + timeout
    try:
        with console(stderr=True).status(f"Waiting for the answer about {query.stream_name} ..."):
            while query.result is None and (left := deadline - time.monotonic()) > 0:
                query = client.query(query.id, wait=min(left, 1.0))
    except KeyboardInterrupt:
        client.cancel(query.id)
        raise
    if query.result is None:
        raise StreamerError(
            ErrorCode.TIMEOUT,
            f"No answer within {timeout:g} s: query {query.id} is {query.status}. Wait longer with "
            "--timeout, or find its answer in `streamer results` later.",
        )
    return query


def _print_answer(query: "Query") -> None:
    from rich.text import Text

    from streamer.terminal import answer_text, caveats, console, cost, seen

    assert query.result is not None
    result = query.result
    out = console()
    out.print(Text(answer_text(result)), soft_wrap=True)
    out.print(Text(f"{query.stream_name} {seen(result)} · {cost(result)}", "dim"), soft_wrap=True)
    for caveat in caveats(result):
        out.print(Text(caveat, "yellow"), soft_wrap=True)
