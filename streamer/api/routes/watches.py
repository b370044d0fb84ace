"""Routes of `/v1/streams/{ref}/watches`: edit standing questions while their stream runs."""

from fastapi import APIRouter

from streamer.api.dependencies import MAX_PAGE, ClientDependency, Cursor, Limit
from streamer.api.middleware.idempotency import IdempotentId, IdempotentRoute
from streamer.api.schemas import WatchBody, WatchList, WatchPatch
from streamer.cursors import decode_cursor, encode_cursor
from streamer.domain.watch import Watch
from streamer.service import Service

router = APIRouter(
    prefix="/v1/streams/{ref}/watches", tags=["watches"], route_class=IdempotentRoute
)


@router.post("", status_code=201)
def add_watch(ref: str, body: WatchBody, client: ClientDependency, new_id: IdempotentId) -> Watch:
    """Add a watch to a stream, given by id or name. Its other watches are not interrupted."""
    watch = watch_of(client, body)
    if new_id is not None:
        watch.id = f"wch_{new_id}"
        if watch.id in {each.id for each in client.stream(ref).watches}:
            return client.watches.get(ref, watch.id)  # added before the API was killed
    return client.watches.add(ref, watch)


@router.get("")
def list_watches(
    ref: str, client: ClientDependency, limit: Limit = MAX_PAGE, cursor: Cursor = None
) -> WatchList:
    """List the watches of a stream, oldest first."""
    watches = client.stream(ref).watches
    start = 0
    if cursor is not None:
        start, last = decode_cursor(cursor)
        places = {watch.id: place for place, watch in enumerate(watches, 1)}
        start = places.get(last, max(start - 1, 0))  # one that was removed left no gap
    end = start + limit
    more = end < len(watches)
    return WatchList(
        watches=watches[start:end],
        next_cursor=encode_cursor(end, watches[end - 1].id) if more else None,
    )


@router.get("/{watch_id}")
def get_watch(ref: str, watch_id: str, client: ClientDependency) -> Watch:
    """Return a watch."""
    return client.watches.get(ref, watch_id)


@router.patch("/{watch_id}")
def edit_watch(ref: str, watch_id: str, body: WatchPatch, client: ClientDependency) -> Watch:
    """Change a watch, which keeps its id. Other watches are not interrupted."""
    return client.watches.edit(
        ref,
        watch_id,
        prompt=body.prompt,
        window=body.window,
        max_frames=body.max_frames,
        max_tokens=body.max_tokens,
        response_format=body.response_format,
        alert=body.alert,
        model=body.new_model,
    )


@router.delete("/{watch_id}")
def remove_watch(ref: str, watch_id: str, client: ClientDependency) -> Watch:
    """Remove a watch and return it. Its results stay in the timeline."""
    return client.watches.remove(ref, watch_id)


def watch_of(client: Service, body: WatchBody) -> Watch:
    """Make the watch of `body`. Raises StreamerError(PROMPT_EMPTY | INVALID_REQUEST)."""
    return client.watch(
        body.prompt,
        window=body.window,
        max_frames=body.max_frames,
        max_tokens=body.max_tokens,
        response_format=body.response_format,
        alert=body.alert,
        model=body.model,
    )
