"""Routes of `/v1/silences`: incidents that are recorded but not delivered."""

from contextlib import suppress
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
from streamer.api.middleware.idempotency import IdempotentId, IdempotentRoute
from streamer.api.schemas import SilenceBody, SilenceList
from streamer.cursors import page_of, time_order
from streamer.domain.timestamp import utc_now
from streamer.errors import StreamerError
from streamer.incidents.silences import Silence
from streamer.validation import validated

router = APIRouter(prefix="/v1/silences", tags=["incidents"], route_class=IdempotentRoute)


@router.post("", status_code=201)
async def add_silence(
    body: SilenceBody,
    client: ClientDependency,
    database: DatabaseDependency,
    new_id: IdempotentId,
) -> Silence:
    """Keep the incidents that fulfil all matchers from being delivered, for a while."""
    given: dict[str, Any] = body.model_dump(exclude={"minutes"}, exclude_none=True)
    if new_id is not None:
        given["id"] = f"sil_{new_id}"
    if body.minutes is not None:
        start = given.setdefault("starts_at", utc_now())
        given["ends_at"] = start + timedelta(minutes=body.minutes)
    silence = validated(Silence, **given)

    def add() -> Silence:
        if new_id is not None:
            with suppress(StreamerError):  # it was added before the API was killed
                return client.incidents.silence_of(silence.id)
        return client.incidents.silence(silence)

    return await database.run(add)


@router.get("")
async def list_silences(
    client: ClientDependency,
    database: DatabaseDependency,
    limit: Limit = MAX_PAGE,
    cursor: Cursor = None,
) -> SilenceList:
    """List the silences that have not ended, those that end first first."""
    found = await database.run(lambda: client.incidents.silences())
    page, following = page_of(found, _place, limit, cursor)
    return SilenceList(silences=page, next_cursor=following)


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
