"""`/v1/streams`: attach, list, detach. Plain functions: FastAPI runs them in its thread pool."""

from fastapi import APIRouter

from streamer.api.dependencies import ClientDependency
from streamer.api.schemas import StreamBody, StreamList
from streamer.domain import Stream

router = APIRouter(prefix="/v1/streams", tags=["streams"])


@router.post("", status_code=201)
def attach(body: StreamBody, client: ClientDependency) -> Stream:
    """Attach a stream; it is tried first, unless `probe` is false."""
    watches = None
    if body.watches is not None:
        watches = [
            client.watch(
                watch.prompt,
                window=watch.window,
                max_frames=watch.max_frames,
                max_tokens=watch.max_tokens,
            )
            for watch in body.watches
        ]
    return client.attach(
        body.url, body.name, sampling=body.sampling, watches=watches, probe=body.probe
    )


@router.get("")
def list_streams(client: ClientDependency) -> StreamList:
    """All attached streams, with their states and counters."""
    return StreamList(streams=client.streams())


@router.get("/{ref}")
def get_stream(ref: str, client: ClientDependency) -> Stream:
    """One stream, by id or name."""
    return client.stream(ref)


@router.delete("/{ref}")
def detach(ref: str, client: ClientDependency) -> Stream:
    """Detach a stream; what it was is returned."""
    return client.detach(ref)
