"""Routes of `/v1/incidents`: what alerts have found, and what people say about it."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response

from streamer.alert_rule import Severity
from streamer.api.dependencies import ClientDependency, Cursor, DatabaseDependency, Limit
from streamer.api.schemas import IncidentList, IncidentPatch, TimeText
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode, StreamerError, about
from streamer.incidents.records import Feedback, Incident, IncidentState
from streamer.limits import MAX_SEARCH
from streamer.service import Service
from streamer.times import moment

router = APIRouter(prefix="/v1/incidents", tags=["incidents"])

_NOBODY = "api"
"""Who is noted where a caller has no key and gives no name."""

_JPEG: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/jpeg": {}}, "description": "The picture."}
}
_MP4: dict[int | str, dict[str, Any]] = {
    200: {"content": {"video/mp4": {}}, "description": "The video."}
}


@router.get("", response_model=IncidentList)
async def list_incidents(
    client: ClientDependency,
    database: DatabaseDependency,
    state: Annotated[
        Literal["pending", "open", "resolved"] | None,
        Query(description="state; default: open and resolved"),
    ] = None,
    stream: Annotated[
        str | None, Query(max_length=MAX_SEARCH, description="id or name of a stream")
    ] = None,
    watch: Annotated[str | None, Query(max_length=MAX_SEARCH, description="id of a watch")] = None,
    severity: Annotated[Severity | None, Query(description="severity")] = None,
    since: Annotated[
        TimeText | None,
        Query(description="open or changed since then: RFC 3339 or relative such as -1d"),
    ] = None,
    unseen: Annotated[bool, Query(description="true: only incidents that no one has seen")] = False,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """List incidents, newest first."""
    with about("since"):
        after = moment(since, utc_now())

    def read() -> str:
        page = client.incidents.page(
            state=state,
            stream=stream,
            watch=watch,
            severity=severity,
            since=after,
            unseen=unseen,
            limit=limit,
            cursor=cursor,
        )
        return IncidentList(
            incidents=page.incidents, next_cursor=page.next_cursor
        ).model_dump_json()

    return Response(await database.run(read), media_type="application/json")


@router.get("/{incident_id}")
async def get_incident(
    incident_id: str, client: ClientDependency, database: DatabaseDependency
) -> Incident:
    """Return an incident."""
    return await database.run(lambda: client.incidents.get(incident_id))


@router.patch("/{incident_id}")
async def edit_incident(
    incident_id: str,
    body: IncidentPatch,
    request: Request,
    client: ClientDependency,
    database: DatabaseDependency,
) -> Incident:
    """Mark an incident as seen, acknowledge it, say whether it was right, or resolve it."""
    by = body.by or getattr(request.state, "key", None) or _NOBODY
    return await database.run(lambda: _edited(client, incident_id, body, by))


def _edited(client: Service, incident_id: str, body: IncidentPatch, by: str) -> Incident:
    incidents = client.incidents
    incident = incidents.get(incident_id)
    if body.state not in (None, IncidentState.RESOLVED, incident.state):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"The incident is {incident.state}: only 'resolved' can be set.",
            "state",
        )
    if body.seen:
        incident = incidents.see(incident_id, by)
    if body.acknowledged is True:
        incident = incidents.acknowledge(incident_id, by, body.note)
    if body.feedback is not None:
        feedback = Feedback(verdict=body.feedback.verdict, by=by, note=body.feedback.note)
        known = incident.feedback
        if known is None or (known.verdict, known.note) != (feedback.verdict, feedback.note):
            incident = incidents.judge(incident_id, feedback)
    if body.state is IncidentState.RESOLVED:
        incident = incidents.resolve(incident_id)
    return incident


@router.get("/{incident_id}/snapshot.jpg", response_class=Response, responses=_JPEG)
async def get_incident_snapshot(
    incident_id: str,
    client: ClientDependency,
    database: DatabaseDependency,
    which: Annotated[
        Literal["opened", "best", "last"],
        Query(description="of the window that opened it, the most probable or the newest one"),
    ] = "best",
    version: Annotated[
        int | None,
        Query(description="of the incident: makes the address of each new picture another one"),
    ] = None,
) -> Response:
    """Return a picture of an incident, as a JPEG."""
    picture = await database.run(lambda: client.incidents.picture(incident_id, which))
    if picture is None:
        raise StreamerError(
            ErrorCode.NO_FRAMES,
            "No picture of this incident was kept: its frames had expired when it was counted.",
        )
    return Response(picture.jpeg, media_type="image/jpeg", headers={"Cache-Control": "no-cache"})


@router.get("/{incident_id}/clip.mp4", response_class=Response, responses=_MP4)
def get_incident_clip(incident_id: str, client: ClientDependency) -> Response:
    """Return a video of an incident, made of the frames that are still kept."""
    return Response(client.incident_clip(incident_id), media_type="video/mp4")
