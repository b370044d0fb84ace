"""The HTTP API over a real server, called through ASGI."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from nvila_core.resolution.policy import Measures
from streamer.api.app import create_app
from streamer.domain.result import Result
from streamer.domain.timestamp import utc_now
from streamer.service import Service
from streamer.settings import Settings
from tests.support.videos import write_video

PASSWORD = "hunter2secret"
HERE = "http://127.0.0.1:8080"


@pytest.fixture
def client(settings: Settings, video: str) -> Service:
    folders = [Path(video).parent, Path.cwd()]
    return Service(settings.model_copy(update={"allowed_dirs": folders}))


@pytest.fixture
def api(client: Service) -> Iterator[TestClient]:
    with TestClient(create_app(client), base_url=HERE, raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("videos") / "clip.mp4"
    write_video(path, seconds=1.0, fps=10)
    return str(path)


def add_frame(client: Service, stream_id: str) -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    measures = Measures(32, 24, change=0.0)
    client.frames.put(stream_id, jpeg, measures, time=time.time(), pts=0.0, decode_ms=1.0)


def answer(client: Service, query_id: str, text: str) -> None:
    result = Result(
        request_id=query_id, kind="answer", stream_id=None, stream_name=None, prompt="?", text=text
    )
    client.queue.publish(result, owner_id=None)


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v1/streams/none", ("info", 404, "UNKNOWN_STREAM", "There is no stream 'none'")),
        ("GET", "/v1/nowhere?token=abc", ("info", 404, "NOT_FOUND", "does not exist")),
        ("PUT", "/v1/streams", ("info", 405, "METHOD_NOT_ALLOWED", "accepts GET, POST")),
        ("POST", "/v1/queries", ("info", 422, "INVALID_REQUEST", "body")),
        ("GET", "/v1/results?secret=abc", ("info", 422, "INVALID_REQUEST", "not a query param")),
        ("GET", "/v1/streams", ("warning", 503, "REDIS_UNAVAILABLE", "Redis")),
    ],
)
def test_a_refused_request_is_logged_with_the_reason(
    api: TestClient, client: Service, method: str, path: str, expected: tuple[str, int, str, str]
) -> None:
    level, status, code, reason = expected
    if status == 503:
        pool = client.connections.main.connection_pool
        pool.disconnect()
        pool.connection_kwargs["port"] = 1
        pool.reset()  # so that it makes new connections
    with capture_logs([merge_contextvars]) as logs:
        response = api.request(method, path)
        assert response.status_code == status
    (line,) = [line for line in logs if line["event"] == "request_refused"]
    assert reason in line.pop("reason")
    assert line.pop("ms") >= 0
    assert line == {
        "event": "request_refused",
        "log_level": level,
        "method": method,
        "path": path.partition("?")[0],
        "client": "testclient",
        "key": None,
        "status": status,
        "code": code,
        "request_id": response.headers["x-request-id"],
    }


def test_a_caller_without_a_key_is_logged(settings: Settings) -> None:
    with_key = Service(settings.model_copy(update={"api_keys": ["s3cret"]}))
    with (
        TestClient(create_app(with_key), base_url=HERE) as api,
        capture_logs() as logs,
    ):
        assert api.get("/v1/streams", headers={"Authorization": "Bearer gu3ss"}).status_code == 401
        assert api.get("/healthz").status_code == 200
    line, quiet = logs
    assert (line["event"], line["status"], line["code"]) == ("request_refused", 401, "UNAUTHORIZED")
    assert "gu3ss" not in str(line)
    assert (quiet["path"], quiet["log_level"]) == ("/healthz", "debug")


def error_of(response) -> tuple[int, str]:
    body = response.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"code", "message", "type", "param", "request_id"}, body
    assert body["error"]["message"]
    assert body["error"]["request_id"] == response.headers["x-request-id"]
    assert PASSWORD not in response.text
    return response.status_code, body["error"]["code"]


# Streams


def test_attach_list_get_detach(api: TestClient, video: str) -> None:
    made = api.post("/v1/streams", json={"url": video, "name": "clip", "sampling": {"fps": 2}})
    assert made.status_code == 201
    stream = made.json()
    assert (stream["name"], stream["state"], stream["sampling"]) == (
        "clip",
        "connecting",
        {"mode": "fps", "fps": 2.0},
    )
    assert len(stream["watches"]) == 1
    assert [s["id"] for s in api.get("/v1/streams").json()["streams"]] == [stream["id"]]
    for ref in (stream["id"], "clip"):
        assert api.get(f"/v1/streams/{ref}").json() == stream
    assert api.delete("/v1/streams/clip").json()["id"] == stream["id"]
    assert api.get("/v1/streams").json()["streams"] == []
    assert error_of(api.delete("/v1/streams/clip")) == (404, "UNKNOWN_STREAM")


def test_a_mode_of_sampling_and_a_transport(api: TestClient) -> None:
    body = {
        "url": "rtsp://cam.invalid/x",
        "name": "gate",
        "probe": False,
        "transport": "udp",
        "sampling": {"mode": "change", "max_interval": 60},
    }
    stream = api.post("/v1/streams", json=body).json()
    sampling = {"mode": "change", "threshold": 0.1, "min_interval": 0.2, "max_interval": 60.0}
    assert (stream["transport"], stream["sampling"]) == ("udp", sampling)
    edited = api.patch("/v1/streams/gate", json={"sampling": {"mode": "keyframes"}}).json()
    assert edited["sampling"] == {"mode": "keyframes", "min_interval": 0.2}
    refused = api.patch("/v1/streams/gate", json={"sampling": {"mode": "keyframes", "fps": 2}})
    assert "'fps' does not go with the sampling mode 'keyframes'" in refused.text


def test_watches_take_defaults_from_the_settings(api: TestClient, video: str) -> None:
    body = {"url": video, "probe": False, "watches": [{"prompt": "Is it open?", "window": 3}]}
    (watch,) = api.post("/v1/streams", json=body).json()["watches"]
    assert (watch["prompt"], watch["window"], watch["max_frames"]) == ("Is it open?", 3.0, 16)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (422, "INVALID_REQUEST")),
        ({"url": "clip.mp4", "nme": "x"}, (422, "INVALID_REQUEST")),
        ({"url": "clip.mp4", "sampling": {"fps": 0}}, (422, "INVALID_REQUEST")),
        ({"url": "clip.mp4", "name": "a b", "probe": False}, (422, "INVALID_REQUEST")),
        (
            {"url": "clip.mp4", "watches": [{"prompt": " "}], "probe": False},
            (422, "PROMPT_EMPTY"),
        ),
        ({"url": "absent.mp4"}, (422, "STREAM_NOT_FOUND")),
        ({"url": "/etc/hostname"}, (403, "STREAM_URL_FORBIDDEN")),
        ({"url": "file:///etc/hostname", "probe": False}, (403, "STREAM_URL_FORBIDDEN")),
        ({"url": "/dev/video0"}, (403, "STREAM_URL_FORBIDDEN")),
        ({"url": "http://169.254.169.254/x", "probe": False}, (403, "STREAM_URL_FORBIDDEN")),
        ({"url": "http://127.0.0.1:6379/x.mp4"}, (403, "STREAM_URL_FORBIDDEN")),
        ({"url": "rtsp://h/x", "transport": "smoke"}, (422, "INVALID_REQUEST")),
        ({"url": "clip.mp4", "sampling": {"mode": "never"}}, (422, "INVALID_REQUEST")),
        ({"url": "clip.mp4", "sampling": {"threshold": 0.5}}, (422, "INVALID_REQUEST")),
        ({"url": "gopher://h/x"}, (403, "STREAM_URL_FORBIDDEN")),
        ({"url": f"rtsp://u:{PASSWORD}@127.0.0.1:1/x"}, (422, "STREAM_CONNECTION_FAILED")),
        ({"url": f"rtsp://u:{PASSWORD}@", "nme": PASSWORD}, (422, "INVALID_REQUEST")),
    ],
)
def test_attach_refusals(
    api: TestClient, body: dict[str, object], expected: tuple[int, str]
) -> None:
    assert error_of(api.post("/v1/streams", json=body)) == expected
    assert api.get("/v1/streams").json()["streams"] == []


def test_a_name_that_is_taken(api: TestClient, video: str) -> None:
    body = {"url": video, "name": "clip", "probe": False}
    assert api.post("/v1/streams", json=body).status_code == 201
    assert error_of(api.post("/v1/streams", json=body)) == (409, "NAME_TAKEN")


def test_no_password_comes_out(api: TestClient) -> None:
    url = f"rtsp://admin:{PASSWORD}@cam.invalid/live"
    made = api.post("/v1/streams", json={"url": url, "probe": False})
    assert made.status_code == 201
    for response in (made, api.get("/v1/streams"), api.get(f"/v1/streams/{made.json()['id']}")):
        assert PASSWORD not in response.text
    assert error_of(api.get(f"/v1/streams/rtsp:%2F%2Fu:{PASSWORD}@h"))[0] == 404


# Queries


@pytest.fixture
def stream_id(api: TestClient, client: Service, video: str) -> str:
    made = api.post("/v1/streams", json={"url": video, "name": "clip", "probe": False}).json()
    add_frame(client, made["id"])
    return str(made["id"])


def test_ask_wait_and_list(api: TestClient, client: Service, stream_id: str) -> None:
    asked = api.post("/v1/queries", json={"prompt": "What?", "stream": "clip"})
    assert asked.status_code == 202
    query = asked.json()
    assert (query["status"], query["result"], query["stream_id"]) == ("queued", None, stream_id)
    assert api.get(f"/v1/queries/{query['id']}").json()["status"] == "queued"

    threading.Timer(0.3, answer, (client, query["id"], "That.")).start()
    waited = api.get(f"/v1/queries/{query['id']}", params={"wait": 30}).json()
    assert (waited["status"], waited["result"]["text"]) == ("done", "That.")
    assert [q["id"] for q in api.get("/v1/queries").json()["queries"]] == [query["id"]]


def test_waiting_ends_without_an_answer(api: TestClient, stream_id: str) -> None:
    query = api.post("/v1/queries", json={"prompt": "What?"}).json()
    assert api.get(f"/v1/queries/{query['id']}?wait=0.2").json()["status"] == "queued"


def test_cancel(api: TestClient, stream_id: str) -> None:
    query = api.post("/v1/queries", json={"prompt": "What?", "stream": stream_id}).json()
    gone = api.delete(f"/v1/queries/{query['id']}").json()
    assert (gone["status"], gone["result"]["error"]["code"]) == ("cancelled", "CANCELLED")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"stream": "clip"}, (422, "INVALID_REQUEST")),
        ({"prompt": "", "stream": "clip"}, (422, "PROMPT_EMPTY")),
        ({"prompt": "?", "stream": "nobody"}, (404, "UNKNOWN_STREAM")),
        ({"prompt": "?", "stream": "clip", "max_frames": 0}, (422, "INVALID_REQUEST")),
        ({"prompt": "?", "stream": "clip", "since": "soon"}, (422, "INVALID_REQUEST")),
        ({"prompt": "?", "stream": "clip", "since": "-2h", "until": "-1h"}, (409, "NO_FRAMES")),
        # fields of later issues are refused, not ignored
        ({"prompt": "?", "stream": "clip", "response_format": {}}, (422, "INVALID_REQUEST")),
        ({"prompt": "?", "stream": "clip", "webhook": "http://h"}, (422, "INVALID_REQUEST")),
        ({"prompt": "?", "file": "f"}, (404, "UNKNOWN_FILE")),
    ],
)
def test_ask_refusals(
    api: TestClient, stream_id: str, body: dict[str, object], expected: tuple[int, str]
) -> None:
    response = api.post("/v1/queries", json=body)
    assert error_of(response) == expected
    for field in ("response_format", "webhook", "file"):
        if field in body:
            assert field in response.json()["error"]["message"]
    assert api.get("/v1/queries").json()["queries"] == []


def test_a_range_in_rfc3339_even_with_its_plus_lost(api: TestClient, stream_id: str) -> None:
    since = "2020-01-01T00:00:00+02:00"
    body = {"prompt": "?", "stream": "clip", "since": since}
    assert api.post("/v1/queries", json=body).status_code == 202
    assert api.get(f"/v1/results?since={since}").status_code == 200


# Results


def test_results_page_by_page(api: TestClient, client: Service) -> None:
    made = [
        Result(
            request_id=f"req_{n}",
            kind="caption",
            stream_id="str_1",
            stream_name="door",
            start=utc_now(),
            end=utc_now(),
            prompt="?",
            text=f"Caption {n}.",
        )
        for n in range(5)
    ]
    client.timeline.record(made)
    seen, cursor = [], None
    for _ in range(3):
        page = api.get(
            "/v1/results", params={"limit": 2, **({"cursor": cursor} if cursor else {})}
        ).json()
        seen += [result["text"] for result in page["results"]]
        cursor = page["next_cursor"]
    assert sorted(seen) == [f"Caption {n}." for n in range(5)]
    assert cursor is None
    assert [
        r["text"] for r in api.get("/v1/results?q=caption 3&stream=door").json()["results"]
    ] == ["Caption 3."]
    assert api.get("/v1/results?kind=alert").json()["results"] == []
    for bad in ("kind=bogus", "limit=0", "limit=100000", "since=soon", "cursor=%00bogus"):
        assert error_of(api.get(f"/v1/results?{bad}")) == (422, "INVALID_REQUEST"), bad


# The house rules of every route


def test_health_is_open_and_errors_have_one_shape(api: TestClient) -> None:
    assert api.get("/healthz").json() == {"status": "ok"}
    for path in ("/v1/nothing", "/", "/v1/streams/yard/nothing"):
        assert error_of(api.get(path)) == (404, "NOT_FOUND")
    for path, methods in (
        ("/v1/streams", "GET, POST"),
        ("/v1/streams/yard", "DELETE, GET, PATCH"),
        ("/healthz", "GET"),
    ):
        refused = api.put(path)
        assert error_of(refused) == (405, "METHOD_NOT_ALLOWED")
        assert refused.headers["allow"] == methods
        assert f"accepts {methods}, not PUT" in refused.json()["error"]["message"]
    refused = api.post("/docs")
    assert error_of(refused) == (405, "METHOD_NOT_ALLOWED")
    assert "GET" in refused.headers["allow"]
    assert error_of(api.get("/v1/queries/qry_0")) == (404, "UNKNOWN_QUERY")
    assert error_of(api.delete("/v1/queries/qry_0")) == (404, "UNKNOWN_QUERY")
    headers = {"content-type": "application/json"}
    broken = api.post("/v1/streams", content=b'{"url": ', headers=headers)
    assert error_of(broken) == (422, "INVALID_REQUEST")
    assert "openapi" in api.get("/openapi.json").json()


@pytest.mark.parametrize(
    "type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
@pytest.mark.parametrize("content", ["JSON", "of its own"])
def test_a_form_from_a_web_page_is_not_taken(
    api: TestClient, video: str, type: str, content: str
) -> None:
    # given what a page of another server can send without being asked: a form, of any content
    body = f'{{"url": "{video}"}}'
    if content == "of its own":
        part = f'--x\r\nContent-Disposition: form-data; name="url"\r\n\r\n{video}\r\n--x--\r\n'
        forms = {"text/plain": f"url={video}", "multipart/form-data; boundary=x": part}
        body = forms.get(type, urlencode({"url": video}))
    # when it is sent
    response = api.post("/v1/streams", content=body, headers={"content-type": type})
    # then it is refused, although the same as JSON is taken
    assert error_of(response) == (422, "INVALID_REQUEST")
    assert api.get("/v1/streams").json()["streams"] == []
    assert api.post("/v1/streams", json={"url": video}).status_code == 201


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:8080"}, 200),
        ({"host": "localhost"}, 200),
        ({"host": "[::1]:8080"}, 200),
        ({"host": "evil.example"}, 403),
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"host": "[bad"}, 403),
        ({"origin": "http://localhost:3000"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_without_keys_only_this_machine(
    api: TestClient, headers: dict[str, str], status: int
) -> None:
    response = api.get("/v1/streams", headers=headers)
    assert response.status_code == status
    if status != 200:
        assert error_of(response) == (403, "UNAUTHORIZED")


def test_keys(settings: Settings) -> None:
    client = Service(settings.model_copy(update={"api_keys": ["first", "zweiter-Schlüssel"]}))
    with TestClient(create_app(client), base_url="http://any.example") as api:
        assert api.get("/healthz").status_code == 200
        for given in (None, "Bearer", "Bearer ", "Bearer wrong", "Basic first", "first"):
            headers = {"authorization": given} if given else {}
            refused = api.get("/v1/streams", headers=headers)
            assert error_of(refused) == (401, "UNAUTHORIZED")
            assert refused.headers["www-authenticate"] == "Bearer"
        for given in ("Bearer first", "bearer first"):
            assert api.get("/v1/streams", headers={"authorization": given}).status_code == 200
        key = "Bearer zweiter-Schlüssel".encode()
        assert api.get("/v1/streams", headers={b"authorization": key}).status_code == 200


def test_a_waiting_request_holds_no_thread(api: TestClient, stream_id: str) -> None:
    """More waiters than the pool has threads, and others are still served."""
    query = api.post("/v1/queries", json={"prompt": "What?"}).json()
    url = f"/v1/queries/{query['id']}?wait=3"
    waiters = [threading.Thread(target=api.get, args=(url,)) for _ in range(60)]
    for waiter in waiters:
        waiter.start()
    assert api.get("/v1/streams").status_code == 200
    assert any(waiter.is_alive() for waiter in waiters)
    for waiter in waiters:
        waiter.join()


def test_redis_lost_under_way(settings: Settings, tmp_path: Path) -> None:
    from streamer.local.redis_server import EmbeddedServer

    server = EmbeddedServer(tmp_path / "server", persistent=False, max_memory=None)
    server.start()
    client = Service(settings.model_copy(update={"redis_url": server.url}))
    with TestClient(create_app(client), base_url=HERE, raise_server_exceptions=False) as api:
        assert api.get("/v1/streams").status_code == 200
        server.stop()
        assert error_of(api.get("/v1/streams")) == (503, "REDIS_UNAVAILABLE")
        assert api.get("/healthz").status_code == 200
