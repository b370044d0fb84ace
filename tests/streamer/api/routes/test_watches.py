"""`/v1/streams/{ref}/watches` over a real server, called through ASGI."""

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from streamer.api.app import create_app
from streamer.service import Service
from streamer.settings import Settings

WATCHES = "/v1/streams/yard/watches"


@pytest.fixture
def api(settings: Settings) -> Iterator[TestClient]:
    app = create_app(Service(settings))
    with TestClient(app, base_url="http://127.0.0.1:8080") as opened:
        body = {"url": "rtsp://cam.invalid/x", "name": "yard", "probe": False}
        assert opened.post("/v1/streams", json=body).status_code == 201
        yield opened


def listed(api: TestClient) -> list[dict[str, Any]]:
    watches = api.get(WATCHES).json()["watches"]
    assert watches == api.get("/v1/streams/yard").json()["watches"]
    return watches


def test_a_watch_from_its_beginning_to_its_end(api: TestClient) -> None:
    (caption,) = listed(api)
    made = api.post(WATCHES, json={"prompt": "Is the gate open?", "window": 3})
    assert made.status_code == 201
    watch = made.json()
    assert (watch["prompt"], watch["window"], watch["max_frames"]) == (
        "Is the gate open?",
        3.0,
        16,
    )
    assert listed(api) == [caption, watch]
    place = f"{WATCHES}/{watch['id']}"
    assert api.get(place).json() == watch
    form = {"type": "choice", "choices": ["yes", "no"]}
    changed = api.patch(place, json={"window": 5, "response_format": form})
    assert changed.status_code == 200
    answer = {"window": 5.0, "response_format": form}
    assert changed.json() == watch | answer
    assert api.patch(place, json={}).json() == changed.json()
    back = api.patch(place, json={"response_format": {"type": "text"}, "window": 3}).json()
    assert back == watch
    stream_id = api.get("/v1/streams/yard").json()["id"]
    assert api.delete(f"/v1/streams/{stream_id}/watches/{watch['id']}").json() == watch
    assert listed(api) == [caption]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, "INVALID_REQUEST"),
        ({"prompt": " "}, "PROMPT_EMPTY"),
        ({"prompt": "?", "window": 0}, "INVALID_REQUEST"),
        ({"prompt": "?", "max_frames": 257}, "INVALID_REQUEST"),
        ({"prompt": "?", "colour": "red"}, "INVALID_REQUEST"),
        (
            {"prompt": "?", "response_format": {"type": "choice", "choices": []}},
            "INVALID_REQUEST",
        ),
        ([{"prompt": "?"}], "INVALID_REQUEST"),
    ],
)
def test_bodies_that_are_refused(api: TestClient, body: Any, expected: str) -> None:
    before = listed(api)
    refusals = [api.post(WATCHES, json=body)]
    if body != {}:  # which changes nothing, and is no mistake
        refusals.append(api.patch(f"{WATCHES}/{before[0]['id']}", json=body))
    for refusal in refusals:
        assert refusal.status_code == 422
        assert refusal.json()["error"]["code"] == expected
        assert refusal.json()["error"]["message"]
    assert listed(api) == before


def test_what_is_not_there(api: TestClient) -> None:
    (caption,) = listed(api)
    for method, body in (("get", None), ("patch", {"prompt": "?"}), ("delete", None)):
        for place, code in (
            (f"{WATCHES}/wch_0", "UNKNOWN_WATCH"),
            (f"/v1/streams/nobody/watches/{caption['id']}", "UNKNOWN_STREAM"),
        ):
            refusal = api.request(method, place, json=body)
            assert refusal.status_code == 404
            assert refusal.json()["error"]["code"] == code
    for refusal in (
        api.get("/v1/streams/nobody/watches"),
        api.post("/v1/streams/nobody/watches", json={"prompt": "?"}),
    ):
        assert (refusal.status_code, refusal.json()["error"]["code"]) == (404, "UNKNOWN_STREAM")
    assert listed(api) == [caption]


def test_the_reference_tells_of_them(api: TestClient) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    assert set(paths["/v1/streams/{ref}/watches"]) == {"get", "post"}
    one = paths["/v1/streams/{ref}/watches/{watch_id}"]
    assert set(one) == {"get", "patch", "delete"}
    for call in one.values():
        assert call["tags"] == ["watches"]
        assert call["description"]
        assert "4XX" in call["responses"]


QUESTION = "Is a car parked in front of the gate?"
RULE = {
    "raise": {"probability": 0.7, "k": 2, "n": 3},
    "clear": {"probability": 0.3, "m": 3},
    "cooldown": 60.0,
    "severity": "warning",
    "title": None,
    "describe": True,
    "schedule": None,
    "labels": {},
}


def test_an_alert_is_a_watch_with_a_rule(api: TestClient) -> None:
    made = api.post(WATCHES, json={"prompt": QUESTION, "window": 5, "alert": {}})
    assert made.status_code == 201, made.text
    watch = made.json()
    assert watch["alert"] == RULE
    assert watch["response_format"] == {"type": "choice", "choices": ["yes", "no"]}
    # what GET returns, POST and PATCH accept
    place = f"{WATCHES}/{watch['id']}"
    body = {name: value for name, value in api.get(place).json().items() if name != "id"}
    again = api.post(WATCHES, json=body).json()
    assert again == watch | {"id": again["id"]}
    assert api.patch(place, json=body).json() == watch
    # a change keeps what it does not name
    patch = {"alert": {"severity": "critical", "raise": {"k": 3}, "labels": {"site": "north"}}}
    changed = api.patch(place, json=patch).json()["alert"]
    assert changed == RULE | {
        "severity": "critical",
        "raise": {"probability": 0.7, "k": 3, "n": 3},
        "labels": {"site": "north"},
    }
    # a watch without a rule becomes an alert
    plain = api.post(WATCHES, json={"prompt": QUESTION}).json()
    assert plain["alert"] is None
    turned = api.patch(f"{WATCHES}/{plain['id']}", json={"alert": {}}).json()
    assert (turned["alert"], turned["response_format"]["type"]) == (RULE, "choice")


def test_a_rule_may_stand_flat(api: TestClient) -> None:
    flat = {"output": "alert", "question": QUESTION, "window": 5, "raise": {"k": 1}, "title": "Car"}
    watch = api.post(WATCHES, json=flat).json()
    assert (watch["prompt"], watch["window"]) == (QUESTION, 5.0)
    assert watch["alert"]["raise"] == {"probability": 0.7, "k": 1, "n": 3}
    assert watch["alert"]["title"] == "Car"


@pytest.mark.parametrize(
    ("alert", "said"),
    [
        ({"raise": {"k": 4}}, "4 of 3 windows can never be"),
        ({"raise": {"probability": 0.2}}, "must be below 0.2, where 'raise' begins"),
        ({"severity": "urgent"}, "'info', 'warning' or 'critical'"),
        ({"labels": {"stream": "x"}}, "the label 'stream' is the incident's own"),
        ({"labels": {"a-b": "x"}}, "labels"),
        ({"schedule": {"timezone": "Mars/Olympus"}}, "'Mars/Olympus' is not a time zone"),
        ({"schedule": {"from": "9am"}}, "schedule"),
        ({"cooldown": -1}, "cooldown"),
        ({"describe": " "}, "The prompt is empty"),
        ({"lights": "on"}, "lights"),
    ],
)
def test_a_rule_that_cannot_be_is_refused(
    api: TestClient, alert: dict[str, Any], said: str
) -> None:
    refused = api.post(WATCHES, json={"prompt": QUESTION, "alert": alert})
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert said in error["message"]
    assert "alert" in error["param"]


def test_an_alert_has_no_other_answers(api: TestClient) -> None:
    body = {
        "prompt": "?",
        "alert": {},
        "response_format": {"type": "json_schema", "json_schema": {}},
    }
    refused = api.post(WATCHES, json=body)
    assert refused.status_code == 422
    assert "leave out 'response_format'" in refused.json()["error"]["message"]
    assert len(listed(api)) == 1
