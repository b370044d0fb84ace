"""The FastAPI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Response
from fastapi.responses import PlainTextResponse
from starlette.routing import Route

from streamer import __version__
from streamer.agents import LLMS_TXT
from streamer.api import metrics, page
from streamer.api.database_threads import MAX_SEARCHES, DatabaseThreads
from streamer.api.dependencies import ClientDependency, refuse_unknown_parameters
from streamer.api.documentation import install_documentation, operation_id
from streamer.api.errors import install_error_handlers
from streamer.api.live import socket
from streamer.api.live.event_hub import EventHub
from streamer.api.live.pictures import Pictures
from streamer.api.live.videos import Videos
from streamer.api.middleware.auth import Authentication
from streamer.api.middleware.body_limit import BodyLimit
from streamer.api.middleware.idempotency import Idempotency
from streamer.api.middleware.keyring import Keyring
from streamer.api.middleware.rate_limit import RateLimit
from streamer.api.middleware.redis_watch import RedisWatch
from streamer.api.middleware.request_log import RequestLog
from streamer.api.middleware.send_limit import SendLimit
from streamer.api.page import PageFiles
from streamer.api.request_metrics import RequestMetrics
from streamer.api.routes import (
    chat,
    discovery,
    events,
    files,
    frames,
    incidents,
    models,
    probe,
    queries,
    results,
    session,
    silences,
    streams,
    summaries,
    uploads,
    watches,
    webhooks,
)
from streamer.api.routes.agents import AgentEndpoint
from streamer.api.schemas import ErrorBody, Health, Readiness
from streamer.api_keys import ApiKeys
from streamer.events import Events
from streamer.health.parts import CachedHealth
from streamer.health.worker_states import WorkerStates
from streamer.service import Service
from streamer.sources.live_video import LiveVideo

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is invalid or cannot be fulfilled."},
    "5XX": {"model": ErrorBody, "description": "The service failed or is unavailable."},
}


_PARTS = (
    streams,
    discovery,
    probe,
    frames,
    watches,
    queries,
    summaries,
    results,
    files,
    events,
    incidents,
    silences,
    webhooks,
    session,
    models,
    chat,
)
"""Modules whose `router` has the calls of the API."""

_CALLS = APIRouter(responses=_ERRORS, generate_unique_id_function=operation_id)
"""Their calls, which all applications of a process share: FastAPI prepares them once, which takes
longer than everything else that `create_app` does."""
for _part in _PARTS:
    _CALLS.include_router(_part.router, dependencies=[Depends(refuse_unknown_parameters)])
_CALLS.include_router(socket.router)
_CALLS.include_router(page.router)
# the tus protocol defines it
_CALLS.include_router(uploads.router, include_in_schema=False)


def create_app(client: Service, *, watch_events: bool = False) -> FastAPI:
    """Create the API over `client`, and close the client when the application ends.

    With `watch_events`, events are read, and the states of workers looked at, from the start on,
    and not only when a client listens.
    """

    keyring = Keyring(ApiKeys(client.connections.main, client.settings), client.connections.clock)
    redis_watch = RedisWatch(client.connections)
    redis = client.connections.main
    hub = EventHub(Events(redis), WorkerStates(redis), client.connections.outage)
    agents = AgentEndpoint(client)
    database, health_database = DatabaseThreads(), DatabaseThreads(threads=2)
    searches = DatabaseThreads(threads=MAX_SEARCHES)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if watch_events:
            await hub.start()
        yield
        hub.close()
        await agents.close()
        redis_watch.close()
        database.close()
        searches.close()
        health_database.close()
        client.close()

    app = FastAPI(
        title="NVILA Streamer",
        version=__version__,
        description="Attach camera streams and ask what they show, now or in the past.",
        lifespan=lifespan,
        responses=_ERRORS,
        routes=_CALLS.routes,
        docs_url=None,
        redoc_url=None,
        generate_unique_id_function=operation_id,
    )
    client.admission.remote = True
    health = CachedHealth(client.health)
    app.state.client = client
    app.state.health = health
    app.state.keyring = keyring
    app.state.idempotency = Idempotency(client.connections.main, client.settings.lease)
    app.state.redis_watch = redis_watch
    app.state.events = hub
    app.state.pictures = Pictures(client.frames, client.connections.frames_outage)
    connections = client.connections
    videos = Videos(
        LiveVideo(connections.frames, connections.clock),
        connections.frames_outage,
        connections.clock,
        max_viewers=client.settings.max_video_viewers,
    )
    app.state.videos = videos
    requests = RequestMetrics()
    app.state.requests = requests
    app.state.database = database
    app.state.searches = searches
    install_error_handlers(app)

    @app.get("/healthz", tags=["service"])
    async def healthz() -> Health:
        """Report that this process is alive. Other processes are not checked."""
        return Health()

    @app.get("/readyz", tags=["service"], responses={503: {"model": Readiness}})
    async def readyz(response: Response) -> Readiness:
        """Report every program and server that the installation needs; 503 if one is missing."""
        parts = await health_database.run(health.parts)
        ready = all(part.up for part in parts)
        response.status_code = 200 if ready else 503
        return Readiness(status="ready" if ready else "not ready", parts=parts)

    @app.get("/metrics", tags=["service"], response_class=PlainTextResponse)
    async def prometheus(client: ClientDependency) -> Response:
        """Return metrics of streams, queues, workers and this process, in Prometheus's format."""
        text = await health_database.run(lambda: metrics.render(client, health, videos, requests))
        return Response(text, media_type=metrics.CONTENT_TYPE)

    @app.get("/llms.txt", include_in_schema=False, response_class=PlainTextResponse)
    async def llms_txt() -> str:
        """Return what a language model should know of this server."""
        return LLMS_TXT.read_text()

    app.router.routes.append(Route("/mcp", agents))
    app.add_middleware(
        BodyLimit,
        max_bytes=client.settings.max_body_bytes,
        max_chat_bytes=client.settings.max_chat_bytes,
        uploads=(files.router.prefix, uploads.router.prefix),
    )
    if client.settings.rate_limit is not None:
        app.add_middleware(
            RateLimit, client=client.connections.main, per_minute=client.settings.rate_limit
        )
    app.add_middleware(Authentication, keyring=keyring)
    install_documentation(app)
    app.add_middleware(PageFiles)
    app.add_middleware(SendLimit)
    app.add_middleware(RequestLog, metrics=requests)  # the last one is around all others
    return app
