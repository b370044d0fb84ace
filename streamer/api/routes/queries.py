"""Routes of `/v1/queries`: ask, wait, list, cancel."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated

import fastapi
from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from streamer.api.dependencies import ClientDependency, Cursor, HubDependency, Limit
from streamer.api.live.query_progress import follow
from streamer.api.middleware.idempotency import IdempotentId, IdempotentRoute
from streamer.api.schemas import QueryList, QuestionBody
from streamer.domain.query import Query
from streamer.questions.queries import NotYet
from streamer.service import FRAME_POLL_INTERVAL

router = APIRouter(prefix="/v1/queries", tags=["queries"], route_class=IdempotentRoute)

_LOOK_INTERVAL = 2.0
"""Seconds between two looks whether a query still has a job, which Redis may have lost."""


async def _existing(query_id: str, client: ClientDependency) -> Query:
    return await run_in_threadpool(client.query, query_id)


@router.post("", status_code=202)
async def ask_question(
    question: QuestionBody, client: ClientDependency, new_id: IdempotentId
) -> Query:
    """Ask a question. Fetch the answer with the returned id.

    With `streams`, `file`, `url` or `window` it is asked of several windows, and the answer sums up
    what they show. A stream that is still being opened is waited for, for up to ten seconds.
    """
    query_id = f"qry_{new_id}" if new_id is not None else None
    deadline = time.monotonic() + client.first_frame_wait
    while True:
        try:
            return await run_in_threadpool(client.submit, question, 0.0, query_id)
        except NotYet:
            if time.monotonic() >= deadline:
                raise
        await asyncio.sleep(FRAME_POLL_INTERVAL)


@router.get("")
def list_queries(client: ClientDependency, limit: Limit = 100, cursor: Cursor = None) -> QueryList:
    """List the newest thousand queries, newest first."""
    queries, next_cursor = client.query_page(limit, cursor)
    return QueryList(queries=queries, next_cursor=next_cursor)


@router.get("/{query_id}")
async def get_query(
    query_id: str,
    client: ClientDependency,
    hub: HubDependency,
    wait: Annotated[
        float, fastapi.Query(ge=0, le=60, description="seconds to wait for the result at most")
    ] = 0.0,
) -> Query:
    """Return a query and, if it is finished, its result. `wait` delays the reply until then."""
    deadline = time.monotonic() + wait
    if wait > 0:
        await hub.start()
    with hub.awaiting(query_id) as awaited:
        while True:
            query = await run_in_threadpool(client.query, query_id)
            left = deadline - time.monotonic()
            if query.result is not None or left <= 0:
                return query
            await awaited.wait(min(_LOOK_INTERVAL, left))


@router.get("/{query_id}/events", response_class=EventSourceResponse)
async def follow_query(
    client: ClientDependency,
    hub: HubDependency,
    query: Annotated[Query, Depends(_existing)],
) -> AsyncIterator[ServerSentEvent]:
    """Send what becomes of a query until it has its result, as server-sent events.

    `progress` has its `status` and, while it waits, `position`: how many are answered before it;
    of a question about several windows also how many are `done` of its `windows`.
    `delta` has a piece of the answer, `text`, and `at`, the characters before it. `result`, the
    last one, is the query with its result.
    """
    async for step in follow(client, hub, query.id):
        yield ServerSentEvent(event=step.name, raw_data=step.data)


@router.delete("/{query_id}")
def cancel_query(query_id: str, client: ClientDependency) -> Query:
    """Cancel a query. One that has a result is returned unchanged."""
    return client.cancel(query_id)
