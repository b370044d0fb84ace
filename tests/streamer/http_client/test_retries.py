"""What is sent again, and what is not, by a server that fails as instructed."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from streamer.errors import ErrorCode, StreamerError

Reply = Callable[[BaseHTTPRequestHandler], None]


def status(number: int, body: Any = None, **headers: str) -> Reply:
    """Answer with a status, headers, and a body as JSON."""

    def reply(handler: BaseHTTPRequestHandler) -> None:
        content = b"<html>" if body is None else json.dumps(body).encode()
        handler.send_response(number)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)

    return reply


def refusal(number: int, code: str, **headers: str) -> Reply:
    """Answer as the API does when it refuses."""
    detail = {
        "code": code,
        "message": "Try later.",
        "type": "server_error",
        "param": None,
        "request_id": "r1",
    }
    return status(number, {"error": detail}, **headers)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True


class Script:
    """A server that gives one reply after the other, and notes what it was asked."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []
        self.requests: list[tuple[str, str | None]] = []  # method and idempotency key
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _serve(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"] or 0))
                script.requests.append((self.command, self.headers["Idempotency-Key"]))
                script.replies.pop(0)(self)

            do_GET = do_POST = do_DELETE = do_PATCH = _serve  # noqa: N815

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def script() -> Iterator[Script]:
    made = Script()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


STREAMS = status(200, {"streams": [], "missing": []})


@pytest.mark.parametrize(
    "failure",
    [
        hang_up,
        refusal(503, "REDIS_UNAVAILABLE", Retry_After="0"),
        refusal(429, "RATE_LIMITED", Retry_After="0.01"),
    ],
    ids=["hang-up", "503", "429"],
)
def test_a_failure_that_passes_is_tried_again(open_client, script: Script, failure: Reply) -> None:
    script.replies = [failure, failure, STREAMS]

    assert open_client(script.url).streams() == []
    assert len(script.requests) == 3


def test_a_question_that_is_sent_again_has_the_same_key(open_client, script: Script) -> None:
    script.replies = [hang_up, refusal(503, "REDIS_FULL", Retry_After="0")] * 2
    client = open_client(script.url, retries=1)

    for _ in range(2):
        with pytest.raises(StreamerError) as failed:
            client.submit("Is it open?")
        assert failed.value.code is ErrorCode.REDIS_FULL
        assert (failed.value.message, failed.value.request_id) == ("Try later.", "r1")

    keys = [key for _, key in script.requests]
    assert len(keys) == 4
    assert None not in keys
    assert keys[0] == keys[1] != keys[2] == keys[3]


@pytest.mark.parametrize(
    "failure",
    [
        refusal(404, "UNKNOWN_STREAM"),
        refusal(500, "INTERNAL"),
        refusal(503, "MODEL_FAILED", x_should_retry="false"),
        refusal(429, "RATE_LIMITED", Retry_After="86400"),
        status(307, Location="http://192.0.2.1/"),
        status(200),
        status(200, {"other": 1}),
    ],
    ids=["404", "500", "no-retry", "tomorrow", "redirect", "no-json", "no-record"],
)
def test_what_does_not_pass_fails_at_once(open_client, script: Script, failure: Reply) -> None:
    script.replies = [failure]

    with pytest.raises(StreamerError):
        open_client(script.url).streams()

    assert len(script.requests) == 1


def test_a_removal_that_may_have_arrived_is_not_sent_twice(open_client, script: Script) -> None:
    script.replies = [hang_up]

    with pytest.raises(StreamerError) as lost:
        open_client(script.url).detach("door")

    assert lost.value.code is ErrorCode.API_UNAVAILABLE
    assert script.requests == [("DELETE", None)]


def test_what_is_not_the_api_is_told(open_client, script: Script) -> None:
    script.replies = [status(502), status(200)]
    client = open_client(script.url, retries=0)

    for _ in range(2):
        with pytest.raises(StreamerError, match="check th") as strange:
            client.streams()
        assert strange.value.code is ErrorCode.API_UNAVAILABLE
        assert script.url in strange.value.message


def test_a_server_that_is_away_is_told(open_client, script: Script) -> None:
    address = script.url.replace("http://", "http://me:hunter2@")
    script.server.server_close()
    client = open_client(address, retries=1, timeout=5)

    with pytest.raises(StreamerError) as away:
        client.streams()

    assert away.value.code is ErrorCode.API_UNAVAILABLE
    assert script.url in away.value.message
    assert "hunter2" not in away.value.message


def test_a_server_that_does_not_answer_is_told(open_client, script: Script) -> None:
    release = threading.Event()
    script.replies = [lambda handler: (release.wait(60), hang_up(handler))[1]]
    client = open_client(script.url, retries=0, timeout=0.2)

    with pytest.raises(StreamerError) as silent:
        client.streams()
    release.set()

    assert silent.value.code is ErrorCode.TIMEOUT
