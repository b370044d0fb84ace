"""The shape of every failure, and the id that a request keeps from its header to the log."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from fastapi import APIRouter
from fastapi.testclient import TestClient
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from streamer.api.app import create_app
from streamer.api.errors import InvalidIs400
from streamer.domain.question import Question
from streamer.service import Service
from streamer.settings import Settings

HERE = "http://127.0.0.1:8080"


@pytest.fixture
def client(settings: Settings) -> Service:
    return Service(settings)


@pytest.fixture
def api(client: Service) -> Iterator[TestClient]:
    app = create_app(client)
    router = APIRouter(route_class=InvalidIs400)

    @router.post("/as-openai")
    def as_openai(question: Question) -> None:
        """Take a question, as a route for OpenAI's clients does."""

    @app.get("/broken")
    def broken() -> None:
        structlog.get_logger("below").info("about_to_break")
        raise RuntimeError("a bug")

    app.include_router(router)
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as opened:
        yield opened


SOURCE: dict[str, Any] = {"url": "rtsp://cam.invalid/x", "probe": False}
CHOICES = {"type": "choice", "choices": ["yes", 1]}


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (("GET", "/nowhere"), (404, "NOT_FOUND", "not_found_error", None)),
        (("PUT", "/v1/streams"), (405, "METHOD_NOT_ALLOWED", "invalid_request_error", None)),
        (
            ("GET", "/v1/streams?colour=red"),
            (422, "INVALID_REQUEST", "invalid_request_error", "colour"),
        ),
        (
            ("GET", "/v1/results?limit=0"),
            (422, "INVALID_REQUEST", "invalid_request_error", "limit"),
        ),
        (
            ("GET", "/v1/results?since=x"),
            (422, "INVALID_REQUEST", "invalid_request_error", "since"),
        ),
        (("GET", "/v1/streams/yard"), (404, "UNKNOWN_STREAM", "not_found_error", None)),
    ],
)
def test_one_shape_for_every_failure(
    api: TestClient, call: tuple[str, str], expected: tuple[int, str, str, str | None]
) -> None:
    # when
    response = api.request(*call)
    # then
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"], error["param"]) == expected
    assert error["request_id"] == response.headers["x-request-id"]
    assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"url": 5}, "url"),
        ({}, "url"),
        ({**SOURCE, "url": "gopher://x"}, "url"),
        ({**SOURCE, "name": "a b"}, "name"),
        ({**SOURCE, "sampling": {"fps": 0}}, "sampling.fps"),
        ({**SOURCE, "colour": "red"}, "colour"),
        ({**SOURCE, "watches": [{"prompt": "?", "window": 0}]}, "watches.0.window"),
        ({**SOURCE, "watches": [{"prompt": "?"}, {"prompt": " "}]}, "watches.1.prompt"),
        ({**SOURCE, "watches": [{"window": 5}]}, "watches.0.prompt"),
        (
            {**SOURCE, "watches": [{"prompt": "?", "response_format": CHOICES}]},
            "watches.0.response_format.choices.1",
        ),
        (
            {**SOURCE, "watches": [{"prompt": "?", "response_format": {"type": "json_schema"}}]},
            "watches.0.response_format.json_schema",
        ),
        (
            {**SOURCE, "watches": [{"prompt": "?", "response_format": {"type": "poem"}}]},
            "watches.0.response_format",
        ),
    ],
)
def test_param_is_the_path_of_the_field(api: TestClient, body: dict[str, Any], param: str) -> None:
    assert api.post("/v1/streams", json=body).json()["error"]["param"] == param


def test_a_route_chooses_400_for_invalid_requests(api: TestClient) -> None:
    for content in (b'{"prompt": ', b"{}", b'{"prompt": ""}', b'{"prompt": "?", "max_frames": 0}'):
        headers = {"content-type": "application/json"}
        assert api.post("/as-openai", content=content, headers=headers).status_code == 400
        assert api.post("/v1/queries", content=content, headers=headers).status_code == 422
    assert api.get("/as-openai").status_code == 405


def test_what_passes_may_be_tried_again(api: TestClient, client: Service) -> None:
    # given a Redis that has gone
    pool = client.connections.main.connection_pool
    pool.disconnect()
    pool.connection_kwargs["port"] = 1
    pool.reset()
    # when
    response = api.get("/v1/streams")
    # then
    assert response.status_code == 503
    assert response.json()["error"]["type"] == "server_error"
    assert int(response.headers["retry-after"]) > 0
    assert "x-should-retry" not in response.headers


def test_refusals_before_the_routes_have_the_same_shape(settings: Settings) -> None:
    limits = {"api_keys": ["s3cret"], "max_body_bytes": 4096}
    with TestClient(create_app(Service(settings.model_copy(update=limits))), base_url=HERE) as api:
        refused = api.get("/v1/streams")
        key = {"authorization": "Bearer s3cret"}
        large = api.post("/v1/queries", content=b" " * 5000, headers=key)
    for response, status, kind in (
        (refused, 401, "authentication_error"),
        (large, 413, "invalid_request_error"),
    ):
        assert response.status_code == status
        assert response.json()["error"]["type"] == kind
        assert response.json()["error"]["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize("given", ["abc-123", "01J.req:7/x=", "a" * 128])
def test_a_request_keeps_the_id_that_it_came_with(api: TestClient, given: str) -> None:
    for path in ("/healthz", "/nowhere", "/openapi.json"):
        response = api.get(path, headers={"X-Request-ID": given})
        assert response.headers["x-request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", 'x"y', "a" * 129, "é", "x\tinjected"])
def test_an_id_that_could_forge_log_lines_is_replaced(api: TestClient, given: str) -> None:
    first, second = (
        api.get("/healthz", headers={b"x-request-id": given.encode()}).headers["x-request-id"]
        for _ in range(2)
    )
    assert given not in (first, second)
    assert first != second


def test_every_log_line_of_a_request_has_its_id(api: TestClient) -> None:
    # when a route, which runs in another thread, logs and breaks
    with capture_logs([merge_contextvars]) as logs:
        response = api.get("/broken?token=abc", headers={"X-Request-ID": "call-7"})
    # then
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (500, "INTERNAL", "server_error")
    assert error["request_id"] == response.headers["x-request-id"] == "call-7"
    assert "a bug" not in response.text
    assert [line["event"] for line in logs] == [
        "about_to_break",
        "request_failed",
        "request_refused",
    ]
    assert {line["request_id"] for line in logs} == {"call-7"}
    assert "abc" not in str(logs)


def test_a_request_that_is_served_is_one_line(api: TestClient, tmp_path: Path) -> None:
    with capture_logs() as logs:
        api.get("/v1/streams", headers={"authorization": "Bearer hidden"})
        api.get("/healthz")
    line, quiet = logs
    assert line.pop("ms") >= 0
    assert line == {
        "event": "request",
        "log_level": "info",
        "method": "GET",
        "path": "/v1/streams",
        "client": "testclient",
        "key": None,
        "status": 200,
    }
    assert quiet["log_level"] == "debug"
