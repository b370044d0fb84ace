"""Routes of `/v1/streams`. Plain functions, because FastAPI runs those in its thread pool."""

from fastapi import APIRouter, Response

from streamer.api.dependencies import ClientDependency, Cursor, HealthDependency, Limit
from streamer.api.middleware.idempotency import IdempotentId, IdempotentRoute
from streamer.api.routes.watches import watch_of
from streamer.api.schemas import StreamBody, StreamList, StreamPatch, WatchBody
from streamer.domain.stream import Stream
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError, about
from streamer.service import Service

router = APIRouter(prefix="/v1/streams", tags=["streams"], route_class=IdempotentRoute)


@router.post("", status_code=201)
def attach_stream(body: StreamBody, client: ClientDependency, new_id: IdempotentId) -> Stream:
    """Attach a stream. The source is opened first, unless `probe` is false."""
    stream_id = f"str_{new_id}" if new_id is not None else None
    if body.file is not None and body.url is None:
        return client.attach_file(
            body.file,
            body.name,
            sampling=body.sampling,
            watches=_watches(client, body.watches),
            stream_id=stream_id,
            model=body.model,
        )
    if body.url is None or body.file is not None:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            "Give the stream's 'url', or the 'file' that you uploaded.",
            "url" if body.url is None else "file",
        )
    return client.attach(
        body.url,
        body.name,
        sampling=body.sampling,
        watches=_watches(client, body.watches),
        transport=body.transport,
        history=body.history,
        retention_days=body.retention_days,
        probe=body.probe,
        live=body.live,
        paused=body.paused,
        stream_id=stream_id,
        model=body.model,
        endpoint_reference=body.endpoint_reference,
    )


@router.get("", response_model=StreamList)
def list_streams(
    client: ClientDependency,
    health: HealthDependency,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List a page of the attached streams with their states and counters, oldest first."""
    page, following = client.stream_page(limit, cursor)
    listed = StreamList.model_construct(
        streams=page, next_cursor=following, missing=health.missing()
    )
    return Response(listed.model_dump_json(), media_type="application/json")


@router.get("/{ref}")
def get_stream(ref: str, client: ClientDependency) -> Stream:
    """Return a stream, given by id or name."""
    return client.stream(ref)


@router.patch("/{ref}")
def edit_stream(ref: str, body: StreamPatch, client: ClientDependency) -> Stream:
    """Change a stream while it runs. A new URL is opened first, unless `probe` is false."""
    watches = _watches(client, body.watches)
    for watch, given in zip(watches or [], body.watches or [], strict=True):
        if given.id is not None and given.id in {each.id for each in client.stream(ref).watches}:
            watch.id = given.id
    return client.edit(
        ref,
        source=body.url,
        name=body.name,
        sampling=body.sampling,
        watches=watches,
        transport=body.transport,
        history=body.history,
        retention_days=body.retention_days,
        paused=body.paused,
        probe=body.probe,
        model=body.new_model,
    )


@router.delete("/{ref}")
def detach_stream(ref: str, client: ClientDependency) -> Stream:
    """Detach a stream and return its last state."""
    return client.detach(ref)


def _watches(client: Service, bodies: list[WatchBody] | None) -> list[Watch] | None:
    if bodies is None:
        return None
    watches = []
    for index, body in enumerate(bodies):
        with about(f"watches.{index}"):
            watches.append(watch_of(client, body))
    return watches
