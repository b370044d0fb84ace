"""`streamer query`: show a question that was asked, wait for its answer, or cancel it."""

from typing import Annotated

import typer

from streamer.cli.ask import await_answer, show_query
from streamer.cli.context import Json, Verbose, open_client


def show_or_cancel(
    query_id: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the query, as `ask --no-wait` printed it.")
    ],
    cancel: Annotated[
        bool, typer.Option("--cancel", help="Cancel the query if it has no answer yet.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the answer, or show what there is.")
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="Wait no longer than this for the answer."),
    ] = 120.0,
    verbose: Verbose = False,
    as_json: Json = False,
) -> None:
    """Show a query and its answer. The exit code is 1 if it failed."""
    if cancel and wait:
        raise typer.BadParameter("--cancel and --wait exclude each other: use one of them.")
    with open_client() as client:
        if cancel:
            found = client.cancel(query_id)
        else:
            found = client.query(query_id)
            if wait:
                found = await_answer(client, found, timeout, interrupted_cancels=False)
    show_query(found, as_json=as_json, costs=verbose, cancelled_is_success=cancel)
