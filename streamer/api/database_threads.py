"""Run the calls that need the timeline's database apart from all others, and not for ever."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from streamer.errors import ErrorCode, StreamerError

_T = TypeVar("_T")

PATIENCE = 10.0
"""Seconds that a request waits for the database, its place among others included."""

MAX_THREADS = 8


class DatabaseThreads:
    """A few threads for calls that may wait for the database.

    FastAPI runs plain functions in one pool of threads for all routes: calls that wait for a frozen
    database would use it up, and listing the streams would wait with them.
    """

    def __init__(self, threads: int = MAX_THREADS, patience: float = PATIENCE) -> None:
        self._pool = ThreadPoolExecutor(threads, "database")
        self._patience = patience

    async def run(self, call: Callable[[], _T]) -> _T:
        """Return `call()`. Raises StreamerError(DATABASE_UNAVAILABLE) when patience ends first."""
        context = contextvars.copy_context()  # has the request id, for the log
        waiting = asyncio.get_running_loop().run_in_executor(self._pool, context.run, call)
        try:
            return await asyncio.wait_for(waiting, self._patience)
        except TimeoutError:
            raise StreamerError(
                ErrorCode.DATABASE_UNAVAILABLE,
                f"The timeline's database did not answer within {self._patience:g} s: check that "
                "it runs, then try again.",
            ) from None

    def close(self) -> None:
        """Drop the calls that have not begun; those that run end by the database's own limit."""
        self._pool.shutdown(wait=False, cancel_futures=True)
