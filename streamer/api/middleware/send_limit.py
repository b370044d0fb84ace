"""End responses that their caller does not read."""

import asyncio

import structlog
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SEND_PATIENCE = 30.0
"""Seconds that a piece of a response may wait for the caller to read what was sent before."""

_log = structlog.get_logger("streamer.api")


class SendLimit:
    """ASGI middleware that closes the connection of a caller that has stopped reading.

    Otherwise each would hold its connection, its place among the listeners and what it has not read
    for as long as it likes.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and end it when a piece of its response is not taken in time."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given_up = False

        async def send_in_time(message: Message) -> None:
            nonlocal given_up
            try:
                async with asyncio.timeout(SEND_PATIENCE):
                    await send(message)
            except TimeoutError:
                given_up = True
                raise

        try:
            await self._app(scope, receive, send_in_time)
        except Exception:
            if not given_up:
                raise
            _log.info("caller_does_not_read", path=scope["path"][:200])
