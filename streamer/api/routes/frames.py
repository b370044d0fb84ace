"""Routes of stored frames: the newest picture, the pictures and a video of a range."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from streamer.api.dependencies import ClientDependency, DatabaseDependency
from streamer.api.schemas import TimeText
from streamer.domain.frame import StoredFrameList
from streamer.domain.timestamp import rfc3339, to_datetime, utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.stored_frames import MAX_LISTED_FRAMES
from streamer.times import parse_time

router = APIRouter(prefix="/v1", tags=["frames"])

_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}}, "description": "The picture."}
}
_MP4: dict[int | str, dict[str, Any]] = {
    200: {"content": {"video/mp4": {}}, "description": "The video."}
}

_Since = Annotated[
    TimeText, Query(description="start of the range: RFC 3339 or relative such as -10m")
]
_Until = Annotated[
    TimeText, Query(description="end of the range: RFC 3339 or relative such as -5m; default: now")
]


@router.get("/streams/{ref}/snapshot.jpg", response_class=Response, responses=_JPEG)
def get_snapshot(ref: str, client: ClientDependency) -> Response:
    """Return the newest frame of a stream as a JPEG; `x-frame-time` says when it was captured."""
    frame, jpeg = client.pictures.newest(ref)
    headers = {"Cache-Control": "no-store", "X-Frame-Time": rfc3339(to_datetime(frame.time))}
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@router.get("/streams/{ref}/frames")
def list_frames(
    ref: str,
    client: ClientDependency,
    since: _Since,
    until: _Until = "now",
    limit: Annotated[
        int, Query(ge=1, le=MAX_LISTED_FRAMES, description="maximum number of frames")
    ] = 100,
) -> StoredFrameList:
    """List the frames of a range that are kept; of more than `limit`, evenly chosen ones."""
    now = utc_now()
    return client.pictures.between(ref, parse_time(since, now), parse_time(until, now), limit)


@router.get("/streams/{ref}/clip.mp4", response_class=Response, responses=_MP4)
def get_clip(ref: str, client: ClientDependency, since: _Since, until: _Until = "now") -> Response:
    """Return a video of a range, made of at most 256 frames that are kept."""
    now = utc_now()
    clip = client.pictures.clip(ref, parse_time(since, now), parse_time(until, now))
    return Response(clip, media_type="video/mp4")


@router.get("/frames/{stream_id}/{frame_id}.jpg", response_class=Response, responses=_JPEG)
def get_frame(stream_id: str, frame_id: str, client: ClientDependency) -> Response:
    """Return a frame that a list named, as a JPEG."""
    headers = {"Cache-Control": "private, max-age=3600, immutable"}
    jpeg = client.pictures.picture(stream_id, frame_id)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@router.get("/results/{request_id}/frames")
async def list_frames_of_result(
    request_id: str, client: ClientDependency, database: DatabaseDependency
) -> StoredFrameList:
    """List the frames behind a result, given by its `request_id`, with the tiles of each."""

    def read() -> StoredFrameList:
        result = client.timeline.get(request_id)
        if result is None:
            raise StreamerError(
                ErrorCode.NOT_FOUND,
                f"No result of the request '{request_id[:80]}' is recorded: see /v1/results.",
            )
        return client.pictures.of_result(result)

    return await database.run(read)


@router.get("/queries/{query_id}/frames")
def list_frames_of_query(query_id: str, client: ClientDependency) -> StoredFrameList:
    """List the frames behind the answer to a query, with the tiles of each; before it, none.

    Of an answer about several windows they are some of each window.
    """
    return client.frames_of_query(query_id)
