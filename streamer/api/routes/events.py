"""Routes of `/v1/events`: what happens, as server-sent events."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import Field

from streamer.api.dependencies import HubDependency
from streamer.api.live.event_hub import Notice
from streamer.errors import ErrorCode, StreamerError
from streamer.events import TYPE_PATTERN, EventFilter, is_position

router = APIRouter(prefix="/v1/events", tags=["events"])

_Types = Annotated[
    str, Field(json_schema_extra={"pattern": f"^({TYPE_PATTERN})(,({TYPE_PATTERN}))*$"})
]
_Position = Annotated[str, Field(json_schema_extra={"pattern": "^[0-9]{1,19}(-[0-9]{1,19})?$"})]

MAX_WORDS = 100
"""Streams, or types, that one listener may name."""


async def _notices(
    hub: HubDependency,
    streams: Annotated[
        list[str] | None,
        Query(description="ids or names of streams, separated by commas; default: all"),
    ] = None,
    types: Annotated[
        list[_Types] | None,
        Query(description="types of events, separated by commas, such as incident.*; default: all"),
    ] = None,
    after: Annotated[
        _Position | None,
        Query(description="id of an event: begin with the one that came after it"),
    ] = None,
    last_event_id: Annotated[
        str | None, Header(description="the same, as a browser sends it when it connects again")
    ] = None,
) -> AsyncIterator[AsyncIterator[Notice]]:
    """Find the place of a listener before the response begins, and free it after its end."""
    if after is not None and not is_position(after):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"'{after[:80]}' is not the id of an event: write one such as 1732588000123-0, or "
            "leave out 'after'.",
        )
    if last_event_id is not None:
        after = last_event_id if is_position(last_event_id) else "0"
    wants = EventFilter.of(_words("streams", streams), _words("types", types))
    async with aclosing(hub.follow(await hub.begin(after), wants)) as notices:
        yield notices


def _words(name: str, given: list[str] | None) -> list[str] | None:
    """Return the words of a parameter, which may be repeated; None if it has none."""
    words = [word.strip() for text in given or () for word in text.split(",") if word.strip()]
    if len(words) > MAX_WORDS:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST, f"'{name}' names more than {MAX_WORDS}: name fewer."
        )
    return words or None


@router.get("", response_class=EventSourceResponse)
async def stream_events(
    notices: Annotated[AsyncIterator[Notice], Depends(_notices)],
) -> AsyncIterator[ServerSentEvent]:
    """Send events as they happen, until the caller goes.

    The first is `hello`, with the time and the id of the oldest event that is kept. Each has an
    `id`, with which a listener that connects again goes on (`Last-Event-ID`, or `after`). `resync`
    says that events are missing: read the state again. A comment comes every 15 seconds. A listener
    that is too slow gets `resync`, and is closed.
    """
    async for notice in notices:
        yield notice.sse
