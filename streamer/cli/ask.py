"""`streamer ask`: ask one question about a stream, now or in the past."""

import math
import time
from typing import TYPE_CHECKING, Annotated

import typer

from streamer.cli.context import Json, ModelOption, Verbose, open_client, renamed, typed_range
from streamer.cli.response_format import ChoiceOption, SchemaOption, response_format_of
from streamer.errors import ErrorCode, StreamerError
from streamer.limits import MAX_ANSWER_TOKENS, MAX_CLIP_FRAMES, MAX_WINDOW

if TYPE_CHECKING:
    from streamer.cli.remote import RemoteInstallation
    from streamer.domain.query import Query
    from streamer.domain.question import Question
    from streamer.service import Service


DEFAULT_TIMEOUT = 120.0
"""Seconds to wait for the answer about one clip."""


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
    streams: Annotated[
        list[str] | None,
        typer.Option(
            "--stream",
            metavar="STREAM",
            help="Ask this stream, and others for which it is repeated, and sum up their answers.",
        ),
    ] = None,
    file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Ask about a recording, window by window: a video file, or its HTTP URL.",
        ),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            metavar="SECONDS",
            min=0.1,
            max=MAX_WINDOW,
            help="Ask about each window of this length, and sum up the answers. Of --file and "
            "--stream the default is setting `window` (10), or longer.",
        ),
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
            max=MAX_CLIP_FRAMES,
            help="Look at no more than this number of frames. Default: 1; with --since, setting "
            "`max_frames` (16).",
        ),
    ] = None,
    frames: Annotated[int | None, typer.Option(min=1, max=MAX_CLIP_FRAMES, hidden=True)] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=MAX_ANSWER_TOKENS,
            help="Limit the answer to this number of tokens. Default: setting `max_tokens` (128).",
        ),
    ] = None,
    choice: ChoiceOption = None,
    json_schema: SchemaOption = None,
    model: ModelOption = None,
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
        float | None,
        typer.Option(
            min=0.1,
            metavar="SECONDS",
            help="Wait no longer than this for the answer. Default: 120; no limit if it is "
            "about several windows.",
        ),
    ] = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Ask a question about a stream, or about a recording, and print the answer."""
    from streamer.domain.question import Question
    from streamer.validation import validated

    if question is None:  # a single argument is the question
        stream, question = None, stream or ""
    shape, count = (
        response_format_of(choice, json_schema),
        renamed(max_frames, frames, "--frames", "--max-frames"),
    )

    source: dict[str, str] = {} if file is None else {"url": file}

    def read_question() -> Question:
        start, end = typed_range(since, until)
        return validated(
            Question,
            prompt=question,
            stream=stream,
            streams=streams or None,
            **source,
            window=every,
            since=start,
            until=end,
            max_frames=count,
            max_tokens=max_tokens,
            response_format=shape,
            model=model,
            stale_ok=stale_ok,
        )

    read_question()  # what is wrong with it is said even if nothing runs
    with open_client() as client:
        if wait:
            client.require_worker()
        if file is not None:
            source = _source(client, file)
        asked = read_question()  # "-10m" counts from the time of Redis
        query = _submit(client, asked)
        if wait:
            limit = math.inf if asked.is_survey else DEFAULT_TIMEOUT
            query = await_answer(client, query, limit if timeout is None else timeout)
    show_query(query, as_json=as_json, costs=verbose)


def _source(client: "Service | RemoteInstallation", file: str) -> dict[str, str]:
    """Return the field of the question that names a recording; a file is uploaded to a service
    elsewhere."""
    from streamer.cli.remote import RemoteInstallation

    if not isinstance(client, RemoteInstallation) or "://" in file:
        return {"url": file}
    from streamer.terminal import console

    with console(stderr=True).status(f"Uploading {file} ..."):
        return {"file": client.upload(file).id}


def show_query(
    query: "Query", *, as_json: bool, costs: bool, cancelled_is_success: bool = False
) -> None:
    """Print a query and its answer. Raises StreamerError if it failed."""
    from streamer.terminal import console, json_lines

    error = None if query.result is None else query.result.error
    cancelled = error is not None and error.code is ErrorCode.CANCELLED
    if as_json:
        json_lines([query])
    elif query.result is None or (cancelled and cancelled_is_success):
        console().print(
            f"Asked {query.stream_name}: query {query.id} is {query.status}.", soft_wrap=True
        )
    elif error is None:
        _print_answer(query, costs)
    if error is not None and not (cancelled and cancelled_is_success):
        raise StreamerError(error.code, error.message)


def _submit(client: "Service | RemoteInstallation", asked: "Question") -> "Query":
    from streamer.questions.queries import NotYet
    from streamer.terminal import console

    try:
        return client.submit(asked, wait=0.0)
    except NotYet:
        with console(stderr=True).status("Waiting for the first picture ..."):
            return client.submit(asked)


def await_answer(
    client: "Service | RemoteInstallation",
    query: "Query",
    timeout: float,
    *,
    interrupted_cancels: bool = True,
) -> "Query":
    """Wait for the result of a query; Ctrl-C cancels it unless `interrupted_cancels` is false.

    Raises StreamerError(TIMEOUT).
    """
    from streamer.terminal import console

    deadline = time.monotonic() + timeout
    try:
        loading = "The model is loading. " if client.jobs.model_loading() else ""
        waiting = f"{loading}Waiting for the answer about {query.stream_name} ..."
        with console(stderr=True).status(waiting) as status:
            while query.result is None and (left := deadline - time.monotonic()) > 0:
                query = client.query(query.id, wait=min(left, 1.0))
                if query.progress is not None and query.progress.windows:
                    done, windows = query.progress.done, query.progress.windows
                    status.update(f"{waiting} {done} of {windows} windows")
    except KeyboardInterrupt:
        if interrupted_cancels:
            client.cancel(query.id)
        raise
    if query.result is None:
        raise StreamerError(
            ErrorCode.TIMEOUT,
            f"No answer within {timeout:g} s: query {query.id} is {query.status}. Wait longer with "
            f"--timeout, or see it later with `streamer query {query.id}`.",
        )
    return query


def _print_answer(query: "Query", costs: bool) -> None:
    from rich.text import Text

    from streamer.terminal import answer_text, caveats, console, cost, print_hanging, seen

    assert query.result is not None
    result = query.result
    out = console()
    none = Text()
    print_hanging(out, none, Text(answer_text(result)))
    spent = f" · {cost(result)}" if costs else ""
    print_hanging(out, none, Text(f"{query.stream_name} {seen(result)}{spent}", "dim"))
    for caveat in caveats(result):
        print_hanging(out, none, Text(caveat, "yellow"))
