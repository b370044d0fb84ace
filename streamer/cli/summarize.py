"""`streamer summarize`: what happened in a range, in a few sentences and as a report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streamer.cli.ask import await_answer
from streamer.cli.context import Json, open_client, typed_range
from streamer.errors import ErrorCode, StreamerError

if TYPE_CHECKING:
    from streamer.domain.result import Result
    from streamer.domain.summaries import Summary


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
    from streamer.domain.summaries import to_markdown
    from streamer.terminal import console, json_lines, plain

    start, end = typed_range(since, until)  # what is wrong with it is said even if nothing runs
    query = None
    with open_client() as client:
        if model:
            client.require_worker()
            query = await_answer(client, client.summarize(stream, start, end), timeout)
            start, end = query.since, query.until
        if not model or as_json or report is not None:
            summary = client.summary_of(stream, start, end)
        else:
            summary = None
    result = None if query is None else query.result
    if result is not None and result.error is not None:
        raise StreamerError(result.error.code, result.error.message)
    if summary is not None and result is not None:
        _fill(summary, result)
    if summary is not None and report is not None:
        _write(report, to_markdown(summary))
    if as_json and summary is not None:
        json_lines([summary])
    elif result is not None and result.text:
        console().print(plain(result.text), soft_wrap=True, markup=False)
    elif summary is not None and report is None:
        console().print(to_markdown(summary), soft_wrap=True, markup=False)
    if report is not None and not as_json:
        console(stderr=True).print(f"Wrote {report}", soft_wrap=True, markup=False)


def _fill(summary: "Summary", result: "Result") -> None:
    """Add the texts of a result to the summary of the same range."""
    summary.text = result.text
    texts = {each["start"]: each["text"] for each in (result.data or {}).get("blocks", [])}
    for block in summary.blocks:
        block.text = texts.get(block.model_dump(mode="json")["start"])


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"{path} cannot be written ({error.strerror}): give another --report.",
        ) from None
