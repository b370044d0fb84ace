"""Routes of `/v1/results`: the timeline."""

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Response

from streamer.api.dependencies import (
    ClientDependency,
    Cursor,
    DatabaseDependency,
    HealthDependency,
    Limit,
)
from streamer.api.schemas import ResultPage

router = APIRouter(prefix="/v1/results", tags=["results"])


@router.get("", response_model=ResultPage)
async def list_results(
    client: ClientDependency,
    database: DatabaseDependency,
    health: HealthDependency,
    stream: Annotated[
        str | None, Query(description="id or name of an attached or detached stream")
    ] = None,
    kind: Annotated[
        Literal["caption", "answer", "alert", "summary", "error"] | None,
        Query(
            description="kind of result; summary, what longer summaries were made of, is left out "
            "by default"
        ),
    ] = None,
    since: Annotated[
        str | None, Query(description="start of the range: RFC 3339 or relative such as -10m")
    ] = None,
    until: Annotated[
        str | None, Query(description="end of the range: RFC 3339 or relative such as -10m")
    ] = None,
    q: Annotated[
        str | None,
        Query(description='words of the answer or the prompt: `red car`, `"red car"` or `park*`'),
    ] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List recorded results, newest first."""

    def read() -> str:
        page = client.results(
            stream=stream, kind=kind, since=since, until=until, q=q, limit=limit, cursor=cursor
        )
        return ResultPage(
            results=page.results, next_cursor=page.next_cursor, missing=health.missing()
        ).model_dump_json()

    return Response(await database.run(read), media_type="application/json")
