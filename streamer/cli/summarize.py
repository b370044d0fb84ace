"""`streamer summarize`: what happened in a range, in a few sentences and as a report."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamer.cli.context import Json, open_local_client, typed_range
from streamer.errors import ErrorCode, StreamerError

if TYPE_CHECKING:
    from streamer.domain import Result
    from streamer.service import Service

MAX_RESULTS = 100_000
"""Results of a range that are summarised."""


def summarize(
    stream: Annotated[str, typer.Argument(help="Name or id of the stream.")],
    since: Annotated[
        str,
        typer.Option(
            metavar="TIME", help="Start of the range: -1d, 16:00, 2026-01-31 or RFC 3339."
        ),
    ] = "-1d",
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="End of the range. Default: now.")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write a report in Markdown, with every caption of the range."
        ),
    ] = None,
    model: Annotated[
        bool,
        typer.Option("--model/--no-model", help="Let the model summarise, or only list captions."),
    ] = True,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="Wait no longer than this for the model."),
    ] = 600.0,
    as_json: Json = False,
) -> None:
    """Summarise what happened on a stream, from its captions and answers, with the times."""
    from streamer.domain import utc_now
    from streamer.summaries import summary_of, to_markdown
    from streamer.terminal import by_time, console, json_lines, plain

    typed_range(since, until)  # what is wrong with it is said even if nothing runs
    with open_local_client("summarize") as client:
        start, end = typed_range(since, until)
        assert start is not None
        end = end or utc_now()
        if model:
            client.require_worker()
        found: list[Result] = []
        cursor = None
        while len(found) < MAX_RESULTS:
            page = client.results(stream=stream, since=start, until=end, limit=1000, cursor=cursor)
            found += page.results
            cursor = page.next_cursor
            if cursor is None:
                break
        with console(stderr=True).status(f"Summarising {len(found)} results ..."):
            ask = _asker(client, time.monotonic() + timeout) if model else None
            summary = summary_of(stream, start, end, by_time(found), ask)
    if report is not None:
        _write(report, to_markdown(summary))
    if as_json:
        json_lines([summary])
    elif summary.text:
        console().print(plain(summary.text), soft_wrap=True, markup=False)
    elif report is None:
        console().print(to_markdown(summary), soft_wrap=True, markup=False)
    if report is not None and not as_json:
        console(stderr=True).print(f"Wrote {report}", soft_wrap=True, markup=False)


def _asker(client: "Service", deadline: float) -> Callable[[Sequence[str]], list[str | None]]:
    """Return what asks the model questions without pictures.

    Raises StreamerError: TIMEOUT; the error of a question if none has an answer.
    """
    from streamer.chats import ChatMessage
    from streamer.summaries import SUMMARY_TOKENS

    def ask(questions: Sequence[str]) -> list[str | None]:
        queries = [
            client.chats.submit(
                client.chats.prepare([ChatMessage("user", [text])], max_tokens=SUMMARY_TOKENS)
            )
            for text in questions
        ]
        answers: list[str | None] = []
        failure = None
        for query in queries:
            while query.result is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    for each in queries:
                        client.cancel(each.id)
                    raise StreamerError(
                        ErrorCode.TIMEOUT,
                        "The model has not answered in time: give a longer --timeout, or "
                        "--no-model for a report without summaries.",
                    )
                query = client.query(query.id, wait=min(left, 1.0))
            failure = failure or query.result.error
            answers.append(query.result.text if query.result.error is None else None)
        if failure is not None and not any(answers):
            raise StreamerError(failure.code, failure.message)
        return answers

    return ask


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"{path} cannot be written ({error.strerror}): give another --report.",
        ) from None
