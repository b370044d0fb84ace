"""The HTTP clients of the tests."""

from collections.abc import Callable, Iterator

import pytest

from streamer.http_client import Client
from tests.support.http_clients import open_http_client

Open = Callable[..., Client]


@pytest.fixture(params=["threads", "async"])
def open_client(request: pytest.FixtureRequest) -> Iterator[Open]:
    """Open a client of a URL, for threads and for asyncio; the end of the test closes it."""
    opened = []

    def make(url: str | None = None, **options: object) -> Client:
        opened.append(open_http_client(request.param, url, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()
