"""Route of `/v1/streams/{ref}/summary`: what was recorded of a stream, summed up."""

from fastapi import APIRouter

from streamer.api.dependencies import ClientDependency, DatabaseDependency
from streamer.api.middleware.idempotency import IdempotentId, IdempotentRoute
from streamer.api.schemas import SummaryBody
from streamer.domain.query import Query

router = APIRouter(prefix="/v1/streams/{ref}", tags=["queries"], route_class=IdempotentRoute)


@router.post("/summary", status_code=202)
async def summarise_stream(
    ref: str,
    body: SummaryBody,
    client: ClientDependency,
    database: DatabaseDependency,
    new_id: IdempotentId,
) -> Query:
    """Sum up the captions and answers of a stream, which may be detached, in a range.

    Fetch the answer with the returned id, as that of a question. `data.blocks` of its result has
    the summaries of the parts of the range.
    """
    query_id = f"qry_{new_id}" if new_id is not None else None
    return await database.run(
        lambda: client.summarize(ref, body.since, body.until, model=body.model, query_id=query_id)
    )
