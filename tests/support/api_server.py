"""The HTTP API as programs reach it: uvicorn on loopback, in a thread; and a reader of events."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import httpx
import pytest
import uvicorn

from streamer.api.app import create_app
from streamer.service import Service
from streamer.settings import Settings


class ApiServer:
    """A running API over an installation."""

    def __init__(self, settings: Settings, port: int = 0) -> None:
        self.client = Service(settings)
        self._socket = socket.create_server(("127.0.0.1", port), backlog=512)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.app = create_app(self.client)
        config = uvicorn.Config(
            self.app,
            log_config=None,
            timeout_graceful_shutdown=1,
            ws_per_message_deflate=False,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


@dataclass(frozen=True)
class Sent:
    """A server-sent event; `comment` for a comment."""

    name: str
    id: str
    data: Any
    comment: str = ""


class EventReader:
    """Reads the server-sent events of one response."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._blocks = self._read()

    def _read(self) -> Iterator[dict[str, str]]:
        fields: dict[str, str] = {}
        for line in self.response.iter_lines():
            if line:
                name, _, value = line.partition(":")
                fields[name] = value.removeprefix(" ")
            elif fields:
                yield fields
                fields = {}

    def __iter__(self) -> Iterator[Sent]:
        """Yield events and comments until the response ends."""
        while True:
            try:
                yield self.next()
            except StopIteration:
                return

    def next(self) -> Sent:
        """Wait for an event or a comment. Raises StopIteration at the end of the response."""
        fields = next(self._blocks)
        data = json.loads(fields["data"]) if "data" in fields else None
        return Sent(fields.get("event", ""), fields.get("id", ""), data, fields.get("", ""))

    def take(self, count: int) -> list[Sent]:
        """Wait for `count` events, and return them without comments."""
        found: list[Sent] = []
        while len(found) < count:
            sent = self.next()
            found += [] if sent.comment else [sent]
        return found


@contextmanager
def listen(url: str, **options: Any) -> Iterator[EventReader]:
    """Open `url`, and read its server-sent events."""
    # without verify=False each call would load the certificates of the machine
    with httpx.stream("GET", url, timeout=120, verify=False, **options) as response:
        assert response.status_code == 200, response.read()
        yield EventReader(response)


@pytest.fixture
def api_server(settings: Settings) -> Iterator[ApiServer]:
    """The API of an empty installation."""
    with ApiServer(settings) as server:
        yield server
