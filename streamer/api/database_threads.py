"""Run the calls that need the timeline's database apart from all others, and not for ever."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from starlette.requests import Request

from streamer.errors import ErrorCode, StreamerError
from streamer.timeline.database import CALLER, Caller, call_cancelled

_T = TypeVar("_T")

_PATIENCE = 10.0
"""Seconds that a request waits for the database, its place among others included."""

MAX_THREADS = 8

MAX_SEARCHES = 4
"""Searches that run at once: more would only make each other slower."""


class DatabaseThreads:
    """A few threads for calls that may wait for the database.

    FastAPI runs plain functions in one pool of threads for all routes: calls that wait for a frozen
    database would use it up, and listing the streams would wait with them.
    """

    def __init__(self, threads: int = MAX_THREADS, patience: float = _PATIENCE) -> None:
        self._pool = ThreadPoolExecutor(threads, "database")
        self._patience = patience

    async def run(self, call: Callable[[], _T], request: Request | None = None) -> _T:
        """Return `call()`.

        With `request`, whose body has been read, the call ends when its client leaves.

        Raises StreamerError: DATABASE_UNAVAILABLE when patience ends first; CANCELLED when the
        client has left.
        """
        context = contextvars.copy_context()  # has the request id, for the log
        caller = Caller()
        context.run(CALLER.set, caller)
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._pool, context.run, call)
        leaving = asyncio.ensure_future(_leaving(request))
        either: set[asyncio.Future[Any]] = {running, leaving}
        try:
            await asyncio.wait(either, timeout=self._patience, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            if leaving.done():
                loop.run_in_executor(None, caller.leave)  # it asks the server
                raise call_cancelled()
        finally:
            leaving.cancel()
            running.cancel()  # it may not have begun
        raise StreamerError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"The timeline's database did not answer within {self._patience:g} s: check that "
            "it runs, then try again.",
        )

    def close(self) -> None:
        """Drop the calls that have not begun; those that run end by the database's own limit."""
        self._pool.shutdown(wait=False, cancel_futures=True)


async def _leaving(request: Request | None) -> None:
    """Return when the client of the request has left; without a request never."""
    if request is None:
        await asyncio.get_running_loop().create_future()
        return
    while (await request.receive())["type"] != "http.disconnect":
        pass
