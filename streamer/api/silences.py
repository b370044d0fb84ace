"""Routes of `/v1/silences`: incidents that are recorded but not delivered."""

from datetime import timedelta
from typing import Any

from fastapi import APIRouter

from streamer.api.dependencies import (
    MAX_PAGE,
    ClientDependency,
    Cursor,
    DatabaseDependency,
    Limit,
)
from streamer.api.schemas import SilenceBody, SilenceList
from streamer.cursors import decode_cursor, encode_cursor, time_order
from streamer.domain import utc_now
from streamer.incidents.silences import Silence
from streamer.validation import validated

router = APIRouter(prefix="/v1/silences", tags=["incidents"])


@router.post("", status_code=201)
async def add_silence(
    body: SilenceBody, client: ClientDependency, database: DatabaseDependency
) -> Silence:
    """Keep the incidents that fulfil all matchers from being delivered, for a while."""
    given: dict[str, Any] = body.model_dump(exclude={"minutes"}, exclude_none=True)
    if body.minutes is not None:
        start = given.setdefault("starts_at", utc_now())
        given["ends_at"] = start + timedelta(minutes=body.minutes)
    silence = validated(Silence, **given)
    return await database.run(lambda: client.incidents.silence(silence))


@router.get("")
async def list_silences(
    client: ClientDependency,
    database: DatabaseDependency,
    limit: Limit = MAX_PAGE,
    cursor: Cursor = None,
) -> SilenceList:
    """List the silences that have not ended, those that end first first."""
    found = sorted(await database.run(lambda: client.incidents.silences()), key=_place)
    if cursor is not None:
        last = decode_cursor(cursor)
        found = [silence for silence in found if _place(silence) > last]
    page = found[:limit]
    more = len(found) > limit
    return SilenceList(
        silences=page, next_cursor=encode_cursor(*_place(page[-1])) if more else None
    )


def _place(silence: Silence) -> tuple[int, str]:
    return time_order(silence.ends_at), silence.id


@router.get("/{silence_id}")
async def get_silence(
    silence_id: str, client: ClientDependency, database: DatabaseDependency
) -> Silence:
    """Return a silence."""
    return await database.run(lambda: client.incidents.silence_of(silence_id))


@router.delete("/{silence_id}")
async def end_silence(
    silence_id: str, client: ClientDependency, database: DatabaseDependency
) -> Silence:
    """End a silence and return it. Incidents that are still open are delivered."""
    return await database.run(lambda: client.incidents.end_silence(silence_id))
