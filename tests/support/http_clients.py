"""Both HTTP clients with one face, so that each test of one is a test of the other."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

from streamer.http_client import AsyncClient, Client


class AwaitedClient:
    """An AsyncClient, or a part of it, whose methods are awaited for the caller."""

    def __init__(self, runner: asyncio.Runner, inner: Any) -> None:
        self._runner, self._inner = runner, inner
        self._iterated: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._inner, name)
        if not callable(attribute):
            return AwaitedClient(self._runner, attribute)

        def call(*args: Any, **kwargs: Any) -> Any:
            answer = attribute(*args, **kwargs)
            if inspect.isawaitable(answer):
                return self._runner.run(_finish(answer))
            return self._items(answer)

        return call

    def _items(self, items: AsyncIterator[Any]) -> Iterator[Any]:
        self._iterated.append(items)
        while True:
            try:
                yield self._runner.run(_finish(anext(items)))
            except StopAsyncIteration:
                return

    def close(self) -> None:
        for items in self._iterated:
            self._runner.run(items.aclose())
        self._runner.run(self._inner.aclose())
        self._runner.close()


async def _finish(answer: Any) -> Any:
    return await answer


def open_http_client(kind: str, url: str | None, **options: Any) -> Client:
    """Open a client; with the kind `async` one that is an AsyncClient inside."""
    if kind == "threads":
        return Client(url, **options)
    return cast(Client, AwaitedClient(asyncio.Runner(), AsyncClient(url, **options)))
