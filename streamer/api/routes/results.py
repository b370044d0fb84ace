"""Routes of `/v1/results`: the timeline."""

import asyncio
import time
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from streamer.api.dependencies import (
    ClientDependency,
    Cursor,
    HealthDependency,
    Limit,
    SearchesDependency,
)
from streamer.api.schemas import ResultPage, TimeText
from streamer.domain.result import SearchMode
from streamer.limits import MAX_SEARCH
from streamer.questions.verification import MAX_VERIFIED
from streamer.timeline.results import Page

router = APIRouter(prefix="/v1/results", tags=["results"])

_LOOK_INTERVAL = 0.5
"""Seconds between two looks at pending verdicts."""


@router.get("", response_model=ResultPage)
async def list_results(
    request: Request,
    client: ClientDependency,
    searches: SearchesDependency,
    health: HealthDependency,
    stream: Annotated[
        str | None,
        Query(max_length=MAX_SEARCH, description="id or name of an attached or detached stream"),
    ] = None,
    kind: Annotated[
        Literal["caption", "answer", "alert", "summary", "error"] | None,
        Query(
            description="kind of result; summary, what longer summaries were made of, is left out "
            "by default"
        ),
    ] = None,
    since: Annotated[
        TimeText | None, Query(description="start of the range: RFC 3339 or relative such as -10m")
    ] = None,
    until: Annotated[
        TimeText | None, Query(description="end of the range: RFC 3339 or relative such as -10m")
    ] = None,
    q: Annotated[
        str | None,
        Query(
            max_length=MAX_SEARCH,
            description='words of the answer or the prompt: `red car`, `"red car"` or `park*`',
        ),
    ] = None,
    mode: Annotated[
        SearchMode,
        Query(
            description="words: results that contain the words of q, newest first; meaning: those "
            "that say something alike, the nearest first, on one page (needs the extra `search`)"
        ),
    ] = "words",
    verify: Annotated[
        bool,
        Query(
            description="ask the model whether the frames of each hit show q; of a page the first "
            f"{MAX_VERIFIED}. The same call again returns the verdicts that were pending"
        ),
    ] = False,
    wait: Annotated[
        float, Query(ge=0, le=60, description="seconds to wait for pending verdicts at most")
    ] = 0.0,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List recorded results, newest first, or search them by words or by meaning."""
    deadline = time.monotonic() + wait

    def read() -> Page:
        return client.results(
            stream=stream,
            kind=kind,
            since=since,
            until=until,
            q=q,
            limit=limit,
            cursor=cursor,
            mode=mode,
            verify=verify,
        )

    page = await searches.run(read, request)
    while _pending(page) and time.monotonic() < deadline:
        await asyncio.sleep(_LOOK_INTERVAL)
        page = await run_in_threadpool(client.verified, page, q or "")

    def write() -> str:
        return ResultPage(
            results=page.results,
            next_cursor=page.next_cursor,
            matches=page.matches,
            missing=health.missing(),
        ).model_dump_json()

    return Response(await searches.run(write), media_type="application/json")


def _pending(page: Page) -> bool:
    return any(match.verdict == "pending" for match in page.matches or [])
