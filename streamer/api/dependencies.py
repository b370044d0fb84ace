"""Dependencies of the route functions."""

from typing import Annotated, cast

from fastapi import Depends, Query, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from starlette.requests import HTTPConnection

from streamer.api.database_threads import DatabaseThreads
from streamer.api.live.event_hub import EventHub
from streamer.cursors import CURSOR_PATTERN
from streamer.domain.record import unstorable
from streamer.errors import ErrorCode, StreamerError
from streamer.health.parts import CachedHealth
from streamer.service import Service

MAX_PAGE = 1000
"""Records of a page."""


# FastAPI would run plain functions in its pool of threads.
async def _client(request: Request) -> Service:
    return cast(Service, request.app.state.client)


async def _database(request: Request) -> DatabaseThreads:
    return cast(DatabaseThreads, request.app.state.database)


async def _searches(request: Request) -> DatabaseThreads:
    return cast(DatabaseThreads, request.app.state.searches)


async def _health(request: Request) -> CachedHealth:
    return cast(CachedHealth, request.app.state.health)


async def _hub(request: HTTPConnection) -> EventHub:
    return cast(EventHub, request.app.state.events)


ClientDependency = Annotated[Service, Depends(_client)]
DatabaseDependency = Annotated[DatabaseThreads, Depends(_database)]
SearchesDependency = Annotated[DatabaseThreads, Depends(_searches)]
HealthDependency = Annotated[CachedHealth, Depends(_health)]
HubDependency = Annotated[EventHub, Depends(_hub)]


Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="maximum number of records")]
Cursor = Annotated[
    str | None,
    Query(
        pattern=CURSOR_PATTERN,
        description="`next_cursor` of the page before",
    ),
]


async def refuse_unknown_parameters(request: Request) -> None:
    """Raise StreamerError(INVALID_REQUEST) for a query parameter that the call does not have, or
    whose value neither database could store.

    A misspelt filter would otherwise return everything.
    """
    route = request.scope.get("route")
    if not isinstance(route, APIRoute):
        return
    known = _query_parameters(route.dependant)
    unknown = [name for name in request.query_params if name not in known]
    if unknown:
        takes = f"takes {', '.join(known)}" if known else "takes none"
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"'{unknown[0][:80]}' is not a query parameter of this call, which {takes}: remove it.",
            unknown[0][:80],
        )
    for name, value in request.query_params.multi_items():
        reason = unstorable(value)
        if reason is not None:
            raise StreamerError(ErrorCode.INVALID_REQUEST, f"'{name}': {reason}.", name)


def _query_parameters(dependant: Dependant) -> list[str]:
    inner = (name for part in dependant.dependencies for name in _query_parameters(part))
    return [*(field.alias for field in dependant.query_params), *inner]
