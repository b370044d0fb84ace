"""What GET returns, POST and PATCH accept; and lists that are read page by page."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient

from nvila_core.resolution.policy import Measures
from streamer.api.app import create_app
from streamer.domain.result import Result
from streamer.domain.stream import StreamSpec, StreamState
from streamer.service import Service
from streamer.settings import Settings
from tests.streamer.incidents.conftest import Alert
from tests.support.videos import write_video

CHOICE = {"type": "choice", "choices": ["open", "closed"]}
SCHEMA = {"type": "json_schema", "json_schema": {"type": "object", "properties": {}}}
WATCHES: list[dict[str, Any]] = [
    {"prompt": "Is it open?", "window": 3, "response_format": CHOICE},
    {"prompt": "What is there?", "max_frames": 4, "response_format": SCHEMA},
    {"prompt": "Is a car there?", "alert": {"severity": "warning"}},
]
PASSWORD = "hunter2secret"


@pytest.fixture
def client(settings: Settings, tmp_path: Path) -> Service:
    return Service(settings.model_copy(update={"allowed_dirs": [tmp_path]}))


@pytest.fixture
def api(client: Service) -> Iterator[TestClient]:
    app = create_app(client)
    with TestClient(app, base_url="http://127.0.0.1:8080") as opened:
        yield opened


def attach(api: TestClient, name: str, **fields: Any) -> dict[str, Any]:
    body = {"url": "rtsp://cam.invalid/x", "name": name, "probe": False, **fields}
    made = api.post("/v1/streams", json=body)
    assert made.status_code == 201, made.text
    return dict(made.json())


def set_part(record: dict[str, Any], names: set[str]) -> dict[str, Any]:
    """Return the fields that a caller sets."""
    kept = {name: value for name, value in record.items() if name in names}
    if "watches" in kept:
        kept["watches"] = [{k: v for k, v in w.items() if k != "id"} for w in kept["watches"]]
    return kept


SETTABLE = {"name", "url", "live", "transport", "sampling", "watches", "history", "paused"}


def test_a_stream_goes_round(api: TestClient) -> None:
    # given
    made = attach(
        api,
        "gate",
        watches=WATCHES,
        transport="udp",
        history=60,
        paused=True,
        sampling={"mode": "change", "max_interval": 60},
    )
    body = api.get("/v1/streams/gate").json()
    # when PATCH gets what GET returned, then nothing changes
    assert api.patch("/v1/streams/gate", json=body).json() == body == made
    # when POST gets it after the stream is gone, then the same is attached again
    api.delete("/v1/streams/gate")
    again = api.post("/v1/streams", json=body | {"probe": False})  # there is no such camera
    assert again.status_code == 201, again.text
    assert set_part(again.json(), SETTABLE) == set_part(body, SETTABLE)
    assert again.json()["id"] != body["id"]


def test_a_masked_password_changes_nothing_and_attaches_nothing(
    api: TestClient, client: Service
) -> None:
    # given
    stream = attach(api, "gate", url=f"rtsp://me:{PASSWORD}@cam.invalid/x")
    # when it is changed by what GET returned
    body = api.get("/v1/streams/gate").json() | {"paused": True}
    changed = api.patch("/v1/streams/gate", json=body)
    # then the password stays
    assert (changed.status_code, changed.json()["paused"]) == (200, True)
    assert changed.json()["url_version"] == stream["url_version"]
    assert PASSWORD in client.registry.secret_url(stream["id"])
    # and a new stream needs the whole URL
    refused = api.post("/v1/streams", json=body | {"name": "other"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "url")
    assert "in place of its password" in refused.json()["error"]["message"]


def test_a_recording_that_has_ended_goes_round(
    api: TestClient, client: Service, tmp_path: Path
) -> None:
    # given
    video = tmp_path / "clip.mp4"
    write_video(video, seconds=0.5, fps=10)
    made = attach(api, "clip", url=str(video), probe=True, watches=WATCHES[:1])
    status = client.registry.status(made["id"]).model_copy(update={"state": StreamState.ENDED})
    client.registry.save_status(made["id"], status)
    body = api.get("/v1/streams/clip").json()
    # then
    assert api.patch("/v1/streams/clip", json=body).json() == body
    other = body | {"watches": [{"prompt": "Who?"}]}
    assert api.patch("/v1/streams/clip", json=other).status_code == 422
    again = api.post("/v1/streams", json=body | {"name": "again"})
    assert set_part(again.json(), SETTABLE - {"name"}) == set_part(body, SETTABLE - {"name"})


def test_a_watch_goes_round(api: TestClient) -> None:
    attach(api, "gate", watches=WATCHES)
    for watch in api.get("/v1/streams/gate/watches").json()["watches"]:
        url = f"/v1/streams/gate/watches/{watch['id']}"
        body = api.get(url).json()
        assert api.patch(url, json=body).json() == body == watch
        copy = api.post("/v1/streams/gate/watches", json=body)
        assert copy.status_code == 201, copy.text
        assert copy.json() == body | {"id": copy.json()["id"]}
        assert copy.json()["id"] != watch["id"]


def test_a_list_of_watches_keeps_ids(api: TestClient) -> None:
    # given
    first, second, third = attach(api, "gate", watches=WATCHES)["watches"]
    # when one is changed, one dropped, one repeated, and one comes from elsewhere
    changed = first | {"prompt": "Is it shut?"}
    body = [changed, third, third, second | {"id": "wch_elsewhere", "prompt": "New?"}]
    after = api.patch("/v1/streams/gate", json={"watches": body}).json()["watches"]
    # then the known ones keep their ids, once
    assert after[:2] == [changed, third]
    ids = [watch["id"] for watch in after]
    assert len(set(ids)) == 4
    assert not {second["id"], "wch_elsewhere"} & set(ids)


def ask(api: TestClient, client: Service, **fields: Any) -> dict[str, Any]:
    jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    stream = client.stream("gate")
    now = client.connections.clock.time()
    measures = Measures(32, 24, change=0.0)
    client.frames.put(stream.id, jpeg, measures, time=now, pts=0.0, decode_ms=1.0)
    asked = api.post("/v1/queries", json={"prompt": "What?", "stream": "gate", **fields})
    assert asked.status_code == 202, asked.text
    return dict(asked.json())


@pytest.mark.parametrize(
    "fields",
    [
        {"stale_ok": True, "max_tokens": 7, "response_format": CHOICE},
        {"since": "-5m", "max_frames": 3, "response_format": SCHEMA},
    ],
)
def test_a_query_goes_round(api: TestClient, client: Service, fields: dict[str, Any]) -> None:
    # given
    attach(api, "other")
    attach(api, "gate")
    asked = ask(api, client, **fields)
    body = api.get(f"/v1/queries/{asked['id']}").json()
    assert body == asked
    # when what GET returned is asked again
    again = api.post("/v1/queries", json=body)
    # then it is the same question
    assert again.status_code == 202, again.text
    own = ("id", "created_at", "start", "end")
    assert {k: v for k, v in again.json().items() if k not in own} == {
        k: v for k, v in body.items() if k not in own
    }
    assert again.json()["id"] != body["id"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/streams", {"url": "rtsp://cam.invalid/x", "probe": False, "stat": "running"}),
        ("/v1/queries", {"prompt": "?", "stream_ids": []}),
        ("/v1/streams/gate/watches", {"prompt": "?", "ids": "x"}),
    ],
)
def test_a_misspelt_field_is_refused(api: TestClient, path: str, body: dict[str, Any]) -> None:
    attach(api, "gate")
    refused = api.post(path, json=body)
    assert refused.status_code == 422
    assert refused.json()["error"]["param"] == list(body)[-1]


# Pages


def pages(
    api: TestClient, path: str, limit: int, between: Callable[[], Any] | None = None
) -> list[list[str]]:
    """Return the ids of all pages; `between` runs after the first one."""
    name = path.rpartition("/")[2]
    found: list[list[str]] = []
    cursor = None
    while True:
        answer = api.get(path, params={"limit": limit} | ({"cursor": cursor} if cursor else {}))
        assert answer.status_code == 200, answer.text
        found.append([record["id"] for record in answer.json()[name]])
        cursor = answer.json()["next_cursor"]
        if cursor is None:
            return found
        if between is not None and len(found) == 1:
            between()


def test_streams_page_by_page(api: TestClient) -> None:
    ids = [attach(api, f"s{n}")["id"] for n in range(5)]
    found = pages(api, "/v1/streams", 2, lambda: api.delete("/v1/streams/s1"))
    assert found == [ids[:2], ids[2:4], ids[4:]]
    left = [ids[0], *ids[2:]]
    assert pages(api, "/v1/streams", 4) == [left]
    assert pages(api, "/v1/streams", 1000) == [left]


def test_a_list_of_streams_has_a_hundred_unless_more_are_asked_for(
    api: TestClient, client: Service
) -> None:
    # given more streams than a page has by default
    specs = [StreamSpec(name=f"s{n}", url="rtsp://camera/x", live=True) for n in range(101)]
    for spec in specs:
        client.registry.create(spec, spec.url)
    ids = [stream.id for stream in client.streams()]
    # when they are listed without a limit, and then the rest
    first = api.get("/v1/streams").json()
    rest = api.get("/v1/streams", params={"cursor": first["next_cursor"]}).json()
    # then the two pages are all of them
    assert [len(page["streams"]) for page in (first, rest)] == [100, 1]
    assert [each["id"] for each in first["streams"] + rest["streams"]] == ids
    assert rest["next_cursor"] is None
    assert pages(api, "/v1/streams", 1000) == [ids]


def test_queries_page_by_page(api: TestClient, client: Service) -> None:
    attach(api, "gate")
    ids = [ask(api, client)["id"] for _ in range(5)]
    known = pages(api, "/v1/queries", 1000)[0]  # in order of time, and within it of ids
    assert set(known) == set(ids)
    found = pages(api, "/v1/queries", 2, lambda: ask(api, client))
    assert found == [known[:2], known[2:4], known[4:]]


def test_watches_page_by_page(api: TestClient) -> None:
    made = attach(api, "gate", watches=[{"prompt": f"Is it {n}?"} for n in range(5)])
    ids = [watch["id"] for watch in made["watches"]]
    path = "/v1/streams/gate/watches"
    for gone in (0, 1):  # before the end of the first page, and at it
        found = pages(api, path, 2, lambda: api.delete(f"{path}/{ids[gone]}"))  # noqa: B023
        assert found[0] == ids[:2]
        assert [each for page in found[1:] for each in page] == ids[2:]
        ids.pop(gone)
        ids.append(api.post(path, json={"prompt": "One more?"}).json()["id"])


def test_results_page_by_page(api: TestClient, client: Service) -> None:
    def result(number: int) -> Result:
        return Result(
            request_id=f"req_{number}",
            kind="caption",
            stream_id="str_1",
            stream_name="door",
            prompt="?",
            text="Seen.",
        )

    client.timeline.record([result(number) for number in range(5)])
    known = pages(api, "/v1/results", 1000)[0]
    found = pages(api, "/v1/results", 2, lambda: client.timeline.record([result(5)]))
    assert found == [known[:2], known[2:4], known[4:]]


@pytest.mark.parametrize("path", ["streams", "queries", "results", "streams/gate/watches"])
def test_what_is_no_page(api: TestClient, path: str) -> None:
    attach(api, "gate")
    for bad in (
        "limit=0",
        "limit=1001",
        "limit=x",
        "cursor=W10",
        "cursor=%C3%A9",
        "cursor=WzEsMl0",
    ):
        refused = api.get(f"/v1/{path}?{bad}")
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (422, bad.partition("=")[0]), bad


def test_a_silence_goes_round(api: TestClient) -> None:
    # given
    matchers = [{"name": "stream", "value": "gate", "isRegex": False, "isEqual": True}]
    key = {"Idempotency-Key": "quiet"}
    body = {"matchers": matchers, "minutes": 5, "reason": "Works."}
    made = api.post("/v1/silences", json=body, headers=key)
    assert api.post("/v1/silences", json=body, headers=key).json() == made.json()
    # when what GET returned is sent again
    shown = api.get(f"/v1/silences/{made.json()['id']}").json()
    again = api.post("/v1/silences", json=shown)
    # then the same is silenced once more
    own = {"id", "created_at"}
    assert again.status_code == 201, again.text
    assert {k: v for k, v in again.json().items() if k not in own} == {
        k: v for k, v in shown.items() if k not in own
    }
    assert again.json()["id"] != shown["id"]


def test_an_incident_goes_round(api: TestClient, client: Service) -> None:
    # given an incident about which all has been said but that it is over
    Alert(client.timeline).see(0.9, 0.9)
    (incident,) = client.incidents.page().incidents
    place = f"/v1/incidents/{incident.id}"
    said = {"acknowledged": True, "note": "On my way.", "feedback": {"verdict": "right"}}
    shown = api.patch(place, json=said | {"seen": True, "by": "ann"}).json()
    # then what GET returned changes nothing
    assert api.patch(place, json=api.get(place).json()).json() == shown
    # and a state that it does not have is refused, but for the end
    refused = api.patch(place, json=shown | {"state": "pending"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "state")
    ended = api.patch(place, json=shown | {"state": "resolved"}).json()
    assert api.patch(place, json=ended).json() == ended
    assert (ended["state"], ended["feedback"]) == ("resolved", shown["feedback"])


def test_webhooks_have_pages(api: TestClient, client: Service) -> None:
    # given webhooks of an allowed address
    client.settings.webhook_hosts.append("127.0.0.1")
    ids = [
        api.post("/v1/webhooks", json={"url": f"http://127.0.0.1/{n}"}).json()["id"]
        for n in range(3)
    ]
    # when
    first = api.get("/v1/webhooks?limit=2").json()
    rest = api.get("/v1/webhooks", params={"cursor": first["next_cursor"]}).json()
    # then
    assert [each["id"] for each in first["webhooks"] + rest["webhooks"]] == ids
    assert rest["next_cursor"] is None
