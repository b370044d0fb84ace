"""`streamer results`: print the timeline, or follow new results."""

import contextlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from streamer.cli.context import Json, Verbose, open_client, typed_range, warn_of_missing

if TYPE_CHECKING:
    from streamer.cli.remote import RemoteInstallation
    from streamer.domain.result import Hit, Result
    from streamer.http_client.calls import Kind
    from streamer.service import Service
    from streamer.times import When

_HITS = 16
"""Hits of a search that are shown by default: as many as can be verified."""

_MAX_WAIT = 120.0
"""Seconds to wait for the verdicts of the model; those that are missing then are shown as such."""

_LOOK_INTERVAL = 0.5


def results(
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new results as they arrive, until Ctrl-C.")
    ] = False,
    stream: Annotated[
        str | None, typer.Option(help="Show only this stream, given by name or id.")
    ] = None,
    kind: Annotated[
        Literal["caption", "answer", "alert", "summary", "error"] | None,
        typer.Option(help="Show only results of this kind. Default: all but `summary`."),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Show only results from this time on: -10m, 16:00 or RFC 3339."
        ),
    ] = None,
    until: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Show only results up to this time: -5m, 16:30 or RFC 3339."
        ),
    ] = None,
    q: Annotated[
        str | None,
        typer.Option(
            "--q", help="Show only results with these words: red car, '\"red car\"' or park*."
        ),
    ] = None,
    meaning: Annotated[
        bool,
        typer.Option(
            "--meaning",
            help="Show the results that say something like --q, the nearest first, whatever their "
            "words. Needs the extra 'search'.",
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Ask the model whether the frames of the first hits show --q, and leave out those "
            "that do not.",
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Show no more than this number of results, the newest ones. Default: 100, or no "
            "limit with --follow.",
        ),
    ] = None,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Print captions, answers and errors in order of time, oldest first."""
    from streamer.terminal import WatchLabels, console, json_lines, print_result

    out = console()
    labels = WatchLabels()

    def show(found: "list[Result]") -> None:
        if as_json:
            json_lines(found)
            return
        labels.learn(found)
        width = max((len(result.stream_name or "") for result in found), default=0)
        for result in found:
            print_result(out, result, max(width, 12), labels.of(result), costs=verbose)

    typed_range(since, until)  # what is wrong with it is said even if nothing runs
    with open_client() as client:
        start, end = typed_range(since, until)
        warn_of_missing(client)
        labels.learn(client.streams())
        if meaning or verify:
            if follow:
                raise typer.BadParameter("--follow excludes --meaning and --verify.")
            hits = _hits(client, stream, kind, start, end, q, limit or _HITS, meaning, verify)
            if as_json:
                json_lines(hits)
            else:
                _print_hits(hits, verbose)
            return
        if not follow:
            show(_recorded(client, stream, kind, start, end, q, limit or 100))
            return
        if until is not None:
            raise typer.BadParameter("--follow and --until exclude each other: use one of them.")
        with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C is how users end it
            _follow(client, show, stream, kind, start, q, limit)


def _hits(
    client: "Service | RemoteInstallation",
    stream: str | None,
    kind: "Kind | None",
    since: "When",
    until: "When",
    q: str | None,
    limit: int,
    meaning: bool,
    verify: bool,
) -> "list[Hit]":
    """Return the hits of a search; of those that are verified wait for the verdicts."""
    from streamer.domain.result import Hit

    deadline = time.monotonic() + _MAX_WAIT
    while True:
        page = client.results(
            stream=stream,
            kind=kind,
            since=since,
            until=until,
            q=q,
            limit=min(limit, 1000),
            mode="meaning" if meaning else "words",
            verify=verify,
        )
        pairs = zip(page.results, page.matches or [], strict=True)
        hits = [Hit(result=result, match=match) for result, match in pairs]
        pending = any(hit.match.verdict == "pending" for hit in hits)
        if not pending or time.monotonic() >= deadline:
            return hits
        time.sleep(_LOOK_INTERVAL)


def _print_hits(hits: "list[Hit]", verbose: bool) -> None:
    from streamer.terminal import console, fit, print_result

    out = console()
    shown = [hit for hit in hits if hit.match.verdict != "no"]
    for hit in shown:
        print_result(out, hit.result, costs=verbose, note=fit(hit.match))
    left_out = len(hits) - len(shown)
    if left_out:
        out.print(f"{left_out} left out: the model says that their frames do not show it.")


def _recorded(
    client: "Service | RemoteInstallation",
    stream: str | None,
    kind: "Kind | None",
    since: "When",
    until: "When",
    q: str | None,
    limit: int,
) -> "list[Result]":
    from streamer.terminal import by_time

    found: list[Result] = []
    cursor = None
    while len(found) < limit:
        page = client.results(
            stream=stream,
            kind=kind,
            since=since,
            until=until,
            q=q,
            limit=min(limit - len(found), 1000),
            cursor=cursor,
        )
        found += page.results
        cursor = page.next_cursor
        if cursor is None:
            break
    return by_time(found)


def _follow(
    client: "Service | RemoteInstallation",
    show: Callable[["list[Result]"], None],
    stream: str | None,
    kind: "Kind | None",
    since: "When",
    q: str | None,
    limit: int | None,
) -> None:
    from streamer.timeline.words import matches
    from streamer.times import moment

    if stream is not None:
        client.require_results_of(stream)
    last_id = "$"
    start = moment(since, client.now()) if isinstance(since, str) else since
    if start is not None:  # ids of the results queue start with milliseconds
        last_id = f"{int(start.timestamp() * 1000)}-0"
    shown = 0
    for _, result in client.queue.follow(last_id):
        if stream is not None and stream not in (result.stream_id, result.stream_name):
            continue
        if result.kind == "summary" if kind is None else result.kind != kind:
            continue
        if q is not None and not matches(q, f"{result.text or ''}\n{result.prompt}"):
            continue
        show([result])
        shown += 1
        if shown == limit:
            return
