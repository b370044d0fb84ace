"""The reference of the API: complete, linked, and served without the network."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from streamer.api import documentation
from streamer.api.app import create_app
from streamer.errors import StreamerError
from streamer.media.urls import parse_source
from streamer.questions.chats import CameraView
from streamer.service import Service
from streamer.settings import Settings

STATIC = Path(documentation.__file__).parent / "static"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> dict:
    from streamer.local.redis_server import EmbeddedServer

    server = EmbeddedServer(tmp_path_factory.mktemp("r"), persistent=False, max_memory=None)
    server.start()
    folder = tmp_path_factory.mktemp("data")
    with Service(Settings(redis_url=server.url, data_dir=folder)) as client:
        found = create_app(client).openapi()
    server.stop()
    return found


@pytest.fixture
def api(settings: Settings) -> Iterator[TestClient]:
    client = Service(settings.model_copy(update={"api_keys": ["s3cret"]}))
    with TestClient(create_app(client), base_url="http://streamer.example") as opened:
        yield opened


def test_the_reference_needs_no_key_and_no_other_server(api: TestClient) -> None:
    # given the page, and what it loads
    page = api.get("/docs")
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    # then all of it comes from here, and scripts of a page cannot be added to it
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert "unsafe-eval" not in page.headers["content-security-policy"]
    for path in loaded:
        assert path.startswith(("/docs/static/", "data:")), path
        if path.startswith("/"):
            assert api.get(path).status_code == 200, path
    script = api.get("/docs/static/docs.js").text
    assert "/openapi.json" in script
    assert api.get("/openapi.json").json()["openapi"].startswith("3.")
    for path in ("/docs/static/nothing.js", "/docs/static/../app.py", "/docs/static/%2e%2e/app.py"):
        assert api.get(path).status_code in (401, 404), path


def test_what_is_vendored_is_what_its_authors_published() -> None:
    (vendored,) = json.loads((STATIC / "VENDOR.json").read_text())
    assert {"name", "version", "licence"} <= vendored.keys()
    for name, digest in vendored["files"].items():
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest, name


def test_each_call_has_a_name_and_says_who_may_make_it(spec: dict) -> None:
    calls = [call for path in spec["paths"].values() for call in path.values()]
    names = [call["operationId"] for call in calls]
    assert len(set(names)) == len(names)
    assert {"attach_stream", "ask_question", "add_watch", "sign_in"} <= set(names)
    assert {"key", "session"} == set(spec["components"]["securitySchemes"])
    assert {"key": []} in spec["security"]
    assert spec["paths"]["/healthz"]["get"]["security"] == []


def test_what_is_created_is_linked_to_its_calls(spec: dict) -> None:
    named = {
        call["operationId"]: path
        for path, calls in spec["paths"].items()
        for call in calls.values()
    }
    for path, status in (("/v1/streams", "201"), ("/v1/queries", "202"), ("/v1/files", "201")):
        links = spec["paths"][path]["post"]["responses"][status]["links"]
        assert {"Get", "Delete"} <= links.keys()
        for link in links.values():
            assert named[link["operationId"]].startswith(path + "/{")
            assert list(link["parameters"].values()) == ["$response.body#/id"]
    watch = spec["paths"]["/v1/streams/{ref}/watches"]["post"]["responses"]["201"]["links"]["Get"]
    assert watch["parameters"] == {"ref": "$request.path.ref", "watch_id": "$response.body#/id"}


def test_errors_are_json_whatever_a_call_returns(spec: dict) -> None:
    for calls in spec["paths"].values():
        for call in calls.values():
            for status in ("4XX", "5XX"):
                assert list(call["responses"][status]["content"]) == ["application/json"]
    stream = spec["paths"]["/v1/events"]["get"]["responses"]["200"]["content"]
    assert list(stream) == ["text/event-stream"]


@pytest.mark.parametrize(
    "source", ["", " \t", "a", " a\n", "\x1fa\x1c", "a\x0eb", "a\tb", "rtsp://a/b c"]
)
def test_sources_have_the_pattern_of_what_is_accepted(spec: dict, source: str) -> None:
    # given
    pattern = spec["components"]["schemas"]["ProbeBody"]["properties"]["url"]["pattern"]
    try:
        # when
        parse_source(source)
    except StreamerError:
        # then
        assert re.search(pattern, source) is None
    else:
        assert re.search(pattern, source) is not None


@pytest.mark.parametrize(
    "last",
    [
        "10s",
        "90",
        "1.5m",
        "2h",
        "30d",
        "0.5s",
        "0.05",
        "100000",
        "0",
        "0s",
        "",
        "-5s",
        "7w",
        "99999d",
    ],
)
def test_the_last_seconds_have_the_pattern_of_what_is_accepted(spec: dict, last: str) -> None:
    # given
    schemas = spec["components"]["schemas"]
    pattern = schemas["StreamView"]["properties"]["last"]["anyOf"][0]["pattern"]
    address = schemas["Address"]["properties"]["url"]["pattern"]
    try:
        # when
        CameraView.at(f"stream://yard?last={last}")
    except StreamerError:
        # then
        assert re.search(pattern, last) is None
        assert re.search(address, f"stream://yard?last={last}") is None
    else:
        assert re.search(pattern, last) is not None
        assert re.search(address, f"stream://yard?last={last}") is not None


@pytest.mark.parametrize(
    "view",
    ["", "?since=-10m", "?since=-10m&until=-5m", "?since=2026-01-31T09:30:00Z&until=now"],
)
def test_the_address_of_a_stream_has_the_pattern_of_what_is_accepted(spec: dict, view: str) -> None:
    pattern = spec["components"]["schemas"]["Address"]["properties"]["url"]["pattern"]
    # accepted
    CameraView.at(f"stream://yard{view}")
    # and described
    assert re.search(pattern, f"stream://yard{view}") is not None
