"""Bodies that are too large: refused by their announced length, or as soon as it is exceeded."""

import asyncio
import contextlib
import json
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi.testclient import TestClient

from nvila_core.generation import schema_check
from streamer.api.app import create_app
from streamer.service import Service
from streamer.settings import Settings

MOST = 8192
DOORS = [
    ("POST", "/v1/queries"),
    ("POST", "/v1/streams"),
    ("PATCH", "/v1/streams/yard"),
    ("POST", "/v1/streams/yard/watches"),
    ("PATCH", "/v1/streams/yard/watches/wch_1"),
]


@pytest.fixture
def client(settings: Settings) -> Iterator[Service]:
    settings.max_body_bytes = MOST
    with Service(settings) as opened:
        opened.attach("rtsp://192.0.2.1/yard", "yard", watches=[], probe=False)
        yield opened


class Exchange:
    """One request to the application, whose body arrives in parts of 1,000 bytes, without end."""

    def __init__(self, client: Service, method: str, path: str, headers: dict[str, str]) -> None:
        self.received = 0
        self.messages: list[Any] = []
        self._headers = {"host": "127.0.0.1", "content-type": "application/json", **headers}
        self._scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in self._headers.items()],
            "scheme": "http",
            "server": ("127.0.0.1", 8080),
            "client": ("127.0.0.1", 9),
        }
        asyncio.run(create_app(client)(self._scope, self._receive, self._send))

    async def _receive(self) -> dict[str, Any]:
        self.received += 1000
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    async def _send(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def error(self) -> dict[str, str]:
        body = b"".join(message.get("body", b"") for message in self.messages[1:])
        error: dict[str, str] = json.loads(body)["error"]
        return error


@pytest.mark.parametrize(("method", "path"), DOORS)
@pytest.mark.parametrize("length", [MOST + 1, 10**12, 10**30])
def test_a_body_that_announces_too_much_is_refused_unread(
    client: Service, method: str, path: str, length: int
) -> None:
    exchange = Exchange(client, method, path, {"content-length": str(length)})

    assert exchange.status == 413
    assert exchange.received == 0
    assert exchange.error["code"] == "REQUEST_TOO_LARGE"
    assert "max_body_bytes" in exchange.error["message"]
    assert exchange.headers[b"connection"] == b"close"


@pytest.mark.parametrize(("method", "path"), DOORS)
@pytest.mark.parametrize("headers", [{"transfer-encoding": "chunked"}, {"content-length": "10"}])
def test_a_body_without_a_true_length_is_read_up_to_the_limit(
    client: Service, method: str, path: str, headers: dict[str, str]
) -> None:
    exchange = Exchange(client, method, path, headers)

    assert exchange.status == 413
    assert exchange.received == 9000  # the first part above the limit is the last
    assert exchange.error["code"] == "REQUEST_TOO_LARGE"


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_at_the_limit_is_read(client: Service, chunked: bool) -> None:
    body = json.dumps({"prompt": "What?", "name": ""}).encode()
    body = body.replace(b'"name": ""', b'"name": "' + b"x" * (MOST - len(body)) + b'"')
    assert len(body) == MOST
    with TestClient(create_app(client), base_url="http://127.0.0.1:8080") as api:

        def post(content: bytes) -> int:
            parts = iter([content[:100], content[100:]]) if chunked else content
            headers = {"content-type": "application/json"}
            return api.post("/v1/queries", content=parts, headers=headers).status_code

        assert post(body) == 422  # 'name' is no field of a question
        assert post(body.replace(b"What", b"What ")) == 413


def test_a_caller_without_a_key_is_refused_before_the_size_is_looked_at(client: Service) -> None:
    client.settings.api_keys = ["a-key-of-the-api"]

    exchange = Exchange(client, "POST", "/v1/queries", {"content-length": str(10**9)})

    assert (exchange.status, exchange.received) == (401, 0)


@pytest.fixture
def address(client: Service) -> Iterator[tuple[str, int]]:
    """The API behind a real server."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(create_app(client), log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield listener.getsockname()
    server.should_exit = True
    thread.join()


@pytest.mark.parametrize("header", ["Content-Length: 10000000000", "Transfer-Encoding: chunked"])
def test_a_server_takes_no_more_of_a_body_than_it_must(
    address: tuple[str, int], header: str
) -> None:
    # given a caller that sends without end
    part = b"x" * 65536
    if "chunked" in header:
        part = b"10000\r\n" + part + b"\r\n"
    head = f"POST /v1/queries HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n"
    with socket.create_connection(address, timeout=60) as caller:
        caller.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode())
        # when the server answers and closes
        answer, sent = b"", 0
        with contextlib.suppress(ConnectionError):
            while sent < 1 << 30 and not select.select([caller], [], [], 0)[0]:
                caller.sendall(part)
                sent += len(part)
        with contextlib.suppress(ConnectionError):
            while data := caller.recv(65536):
                answer += data
    # then the buffers of two sockets were filled at most
    assert sent < 64 << 20
    assert not answer or answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize("depth", [200, 900, 100_000])
def test_a_body_nested_without_end_is_refused(client: Service, depth: int) -> None:
    client.settings.max_body_bytes = 2 << 20
    schema = '{"items":' * depth + "{}" + "}" * depth
    body = (
        '{"prompt": "What?", "stream": "yard", "response_format": '
        f'{{"type": "json_schema", "json_schema": {schema}}}}}'
    )
    served = create_app(client)
    with TestClient(served, base_url="http://127.0.0.1:8080", raise_server_exceptions=False) as api:
        for path in ("/v1/queries", "/v1/streams/yard/watches"):
            answer = api.post(path, content=body, headers={"content-type": "application/json"})
            assert 400 <= answer.status_code < 500, answer.text
            assert len(answer.text) < 1000


def test_more_schemas_than_can_be_checked_soon_are_put_off(
    client: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema_check, "MAX_WAITING_SCHEMAS", 0)
    with TestClient(create_app(client), base_url="http://127.0.0.1:8080") as api:
        form = {"type": "json_schema", "json_schema": {"const": "a schema of its own"}}
        body = {"prompt": "What?", "stream": "yard", "response_format": form}
        answer = api.post("/v1/queries", json=body)
    assert answer.status_code == 429
    assert answer.headers["retry-after"]
    assert "try again" in answer.json()["error"]["message"]
