"""The client for asyncio."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
from tenacity import AsyncRetrying

from streamer.errors import StreamerError
from streamer.http_client.call import Call, Flow, Paged, as_method
from streamer.http_client.calls import (
    IncidentCalls,
    ServiceCalls,
    SilenceCalls,
    WatchCalls,
    WebhookCalls,
)
from streamer.http_client.connection import Connection
from streamer.http_client.listening import Listener

_P = ParamSpec("_P")
_T = TypeVar("_T")
_Answer = Coroutine[Any, Any, _T]


def _once(make: Callable[_P, Call[_T]]) -> Callable[Concatenate["_Sender", _P], _Answer[_T]]:
    async def method(sender: "_Sender", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return await sender.send(make(*args, **kwargs))

    as_method(method, make)
    return method


def _whole(make: Callable[_P, Flow[_T]]) -> Callable[Concatenate["_Sender", _P], _Answer[_T]]:
    async def method(sender: "_Sender", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        flow = make(*args, **kwargs)
        try:
            call = next(flow)
            while True:
                call = flow.send(await sender.send(call))
        except StopIteration as end:
            answer: _T = end.value
            return answer

    as_method(method, make)
    return method


def _each(
    make: Callable[_P, Paged[_T]],
) -> Callable[Concatenate["_Sender", _P], AsyncIterator[_T]]:
    def method(sender: "_Sender", /, *args: _P.args, **kwargs: _P.kwargs) -> AsyncIterator[_T]:
        pages = make(*args, **kwargs)
        return (item async for page in _pages(sender, pages) for item in page)

    as_method(method, make)
    return method


async def _pages(sender: "_Sender", pages: Paged[_T]) -> AsyncIterator[list[_T]]:
    while (call := pages.next_call()) is not None:
        yield pages.take(await sender.send(call))


def _listen(
    make: Callable[_P, Listener[_T]],
) -> Callable[Concatenate["_Sender", _P], AsyncIterator[_T]]:
    def method(sender: "_Sender", /, *args: _P.args, **kwargs: _P.kwargs) -> AsyncIterator[_T]:
        return sender.listen(make(*args, **kwargs))

    as_method(method, make)
    return method


class _Sender:
    """Sends calls over one pool of connections."""

    def __init__(self, connection: Connection, http: httpx.AsyncClient) -> None:
        self._connection = connection
        self._http = http

    async def send(self, call: Call[_T]) -> _T:
        """Return the answer to a call, which is sent again if its failure may pass.

        Raises StreamerError.
        """
        return await AsyncRetrying(**self._connection.retrying)(self._send_once, call)

    async def _send_once(self, call: Call[_T]) -> _T:
        try:
            response = await self._http.request(**self._connection.request(call))
        except httpx.HTTPError as error:
            raise call.lost(error) from error
        return call.answer(response)

    async def listen(self, listening: Listener[_T]) -> AsyncIterator[_T]:
        """Yield events to the last one, and connect again whenever the connection is lost.

        Raises StreamerError for a refusal, and if there is no first connection.
        """
        options = self._connection.listening
        while True:
            try:
                async with self._http.stream(**listening.request, **options) as response:
                    if not response.is_success:
                        await response.aread()
                    listening.begin(response)
                    async for line in response.aiter_lines():
                        if (event := listening.take(line)) is not None:
                            yield event
                        if listening.ended:
                            return
                pause = listening.pause_after(None)
            except (httpx.HTTPError, StreamerError) as error:
                pause = listening.pause_after(error)
            await asyncio.sleep(pause)


class _Watches(_Sender):
    """Add, change and remove the watches of attached streams."""

    add = _once(WatchCalls.add)
    list = _once(WatchCalls.list)
    get = _once(WatchCalls.get)
    edit = _once(WatchCalls.edit)
    remove = _once(WatchCalls.remove)


class _Incidents(_Sender):
    """What alerts have found, and what people say about it."""

    list = _each(IncidentCalls.list)
    page = _once(IncidentCalls.page)
    get = _once(IncidentCalls.get)
    see = _once(IncidentCalls.see)
    acknowledge = _once(IncidentCalls.acknowledge)
    judge = _once(IncidentCalls.judge)
    resolve = _once(IncidentCalls.resolve)
    snapshot = _once(IncidentCalls.snapshot)
    clip = _once(IncidentCalls.clip)


class _Silences(_Sender):
    """Incidents that are recorded and not delivered."""

    add = _once(SilenceCalls.add)
    list = _once(SilenceCalls.list)
    get = _once(SilenceCalls.get)
    end = _once(SilenceCalls.end)


class _Webhooks(_Sender):
    """The webhooks: programs that receive events."""

    add = _once(WebhookCalls.add)
    list = _once(WebhookCalls.list)
    get = _once(WebhookCalls.get)
    edit = _once(WebhookCalls.edit)
    remove = _once(WebhookCalls.remove)
    deliveries = _each(WebhookCalls.deliveries)
    retry = _once(WebhookCalls.retry)
    test = _once(WebhookCalls.test)


class AsyncClient(_Sender):
    """The :class:`Client` for asyncio: the same methods, to be awaited or iterated over.

    Args:
        url: address of the API; default: `STREAMER_API_URL`, or http://127.0.0.1:8080.
        api_key: a key of the API; default: `STREAMER_API_KEY`.
        timeout: seconds without any answer after which a request has failed.
        retries: how often a request is sent again.
        transport: how requests travel, for a proxy or certificates of yours:
            `httpx.AsyncHTTPTransport(proxy=..., verify=...)`.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        retries: int = 2,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        connection = Connection(url, api_key, timeout, retries)
        super().__init__(connection, httpx.AsyncClient(transport=transport, **connection.options))
        self.watches = _Watches(connection, self._http)
        """Add, change and remove the watches of attached streams."""
        self.incidents = _Incidents(connection, self._http)
        """List, show and judge what alerts have found."""
        self.silences = _Silences(connection, self._http)
        """Keep incidents from being delivered for a while."""
        self.webhooks = _Webhooks(connection, self._http)
        """Send events to programs."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    attach = _once(ServiceCalls.attach)
    discover = _once(ServiceCalls.discover)
    edit = _once(ServiceCalls.edit)
    pause = _once(ServiceCalls.pause)
    resume = _once(ServiceCalls.resume)
    detach = _once(ServiceCalls.detach)
    streams = _whole(ServiceCalls.streams)
    stream = _once(ServiceCalls.stream)
    snapshot = _once(ServiceCalls.snapshot)
    frames = _once(ServiceCalls.frames)
    frames_of = _once(ServiceCalls.frames_of)
    picture = _once(ServiceCalls.picture)
    clip = _once(ServiceCalls.clip)
    upload = _whole(ServiceCalls.upload)
    files = _once(ServiceCalls.files)
    file = _once(ServiceCalls.file)
    delete_file = _once(ServiceCalls.delete_file)
    ask = _whole(ServiceCalls.ask)
    submit = _once(ServiceCalls.submit)
    summarize = _whole(ServiceCalls.summarize)
    follow = _listen(ServiceCalls.follow)
    query = _whole(ServiceCalls.query)
    queries = _once(ServiceCalls.queries)
    cancel = _once(ServiceCalls.cancel)
    results_page = _once(ServiceCalls.results_page)
    results = _each(ServiceCalls.results)
    events = _listen(ServiceCalls.events)
    health = _once(ServiceCalls.health)
