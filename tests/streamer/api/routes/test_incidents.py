"""`/v1/incidents` and `/v1/silences`, and the commands that do the same."""

import io
import json
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import av
import cv2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from nvila_core.resolution.policy import Measures
from streamer.cli.app import app as program
from streamer.domain.stream import Stream
from streamer.domain.timestamp import to_datetime
from streamer.incidents.store import KeptPicture
from streamer.service import Service
from tests.streamer.incidents.conftest import Alert

Run = Callable[..., Any]


@pytest.fixture
def stream(client: Service) -> Stream:
    return client.attach("rtsp://cam.invalid/x", "lobby", probe=False)


@pytest.fixture
def alert(client: Service, stream: Stream) -> Alert:
    made = Alert(client.timeline)
    made.stream_id = stream.id
    return made


@pytest.fixture
def incident(api: TestClient, alert: Alert) -> dict[str, Any]:
    result = alert.result(1, 0.9)
    picture = KeptPicture(b"\xff\xd8 a picture", result.created_at)
    alert.record(alert.result(0, 0.8), result, pictures={result.id: picture})
    (found,) = api.get("/v1/incidents").json()["incidents"]
    return dict(found)


@pytest.fixture
def run(client: Service, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("STREAMER_REDIS_URL", client.settings.redis_url or "")
    monkeypatch.setenv("STREAMER_DATA_DIR", str(client.settings.data_dir))
    return lambda *arguments: CliRunner().invoke(program, arguments)


def test_an_incident_has_every_field_of_its_contract(incident: dict[str, Any]) -> None:
    fields = """id watch_id stream_id stream_name title question severity labels state opened_at
        raised_at last_seen_at resolved_at resolve_reason probability windows reopened summary
        snapshot clip result_ids seen_by acknowledged feedback silenced_by deliveries version"""
    assert set(fields.split()) <= set(incident)
    assert (incident["state"], incident["severity"]) == ("open", "warning")
    assert incident["probability"] == {"first": 0.8, "last": 0.9, "max": 0.9}
    assert incident["windows"] == {"yes": 2, "no": 0, "unknown": 0}
    assert set(incident["snapshot"]) == {"opened", "best", "last"}
    assert len(incident["result_ids"]) == 2


def test_its_pictures_and_what_people_say(api: TestClient, incident: dict[str, Any]) -> None:
    place = f"/v1/incidents/{incident['id']}"
    picture = api.get(incident["snapshot"]["opened"])
    assert (picture.content, picture.headers["content-type"]) == (
        b"\xff\xd8 a picture",
        "image/jpeg",
    )
    assert api.get(f"{place}/snapshot.jpg").content == picture.content
    assert api.patch(place, json={}).json() == api.get(place).json() == incident
    said = api.patch(place, json={"seen": True, "by": "ann"}).json()
    assert said["seen_by"] == ["ann"]
    said = api.patch(place, json={"acknowledged": True, "note": "on my way"}).json()
    assert said["acknowledged"]["note"] == "on my way"
    said = api.patch(place, json={"feedback": {"verdict": "unsure"}, "state": "resolved"}).json()
    assert said["feedback"]["verdict"] == "unsure"
    assert (said["state"], said["resolve_reason"]) == ("resolved", "manual")
    assert said["version"] > incident["version"]


def test_the_video_of_an_incident(
    api: TestClient, client: Service, stream: Stream, alert: Alert
) -> None:
    # given an incident of now, and frames of it
    now = time.time()
    for second in range(6):
        _, jpeg = cv2.imencode(".jpg", np.full((90, 120, 3), 40 * second, np.uint8))
        client.frames.put(
            stream.id,
            jpeg.tobytes(),
            Measures(120, 90, change=0.5),
            time=now - 6 + second,
            pts=float(second),
        )
    times = {"start": to_datetime(now - 4), "end": to_datetime(now)}
    alert.rule = alert.rule.model_copy(
        update={"raise_": alert.rule.raise_.model_copy(update={"k": 1})}
    )
    alert.record(alert.result(0, 0.9, **times))
    (found,) = api.get("/v1/incidents?state=open&stream=lobby").json()["incidents"]
    # then its video shows them, for as long as they lasted
    video = api.get(found["clip"])
    assert (video.status_code, video.headers["content-type"]) == (200, "video/mp4")
    with av.open(io.BytesIO(video.content), "r") as container:
        shown = [frame.time for frame in container.decode(video=0)]
    assert shown == pytest.approx([0, 1, 2, 3, 4, 5, 6], abs=0.01)
    # and when the frames are gone, it says so
    client.detach("lobby")
    gone = api.get(found["clip"])
    assert (gone.status_code, gone.json()["error"]["code"]) == (410, "FRAMES_EXPIRED")


@pytest.mark.parametrize(
    ("method", "place", "body", "status", "code"),
    [
        ("GET", "/v1/incidents/inc_0", None, 404, "UNKNOWN_INCIDENT"),
        ("PATCH", "/v1/incidents/inc_0", {"seen": True}, 404, "UNKNOWN_INCIDENT"),
        ("GET", "/v1/incidents/inc_0/snapshot.jpg", None, 404, "UNKNOWN_INCIDENT"),
        ("GET", "/v1/incidents/inc_0/clip.mp4", None, 404, "UNKNOWN_INCIDENT"),
        ("GET", "/v1/incidents?state=over", None, 422, "INVALID_REQUEST"),
        ("GET", "/v1/incidents?since=noon", None, 422, "INVALID_REQUEST"),
        ("GET", "/v1/incidents?cursor=x", None, 422, "INVALID_REQUEST"),
        ("GET", "/v1/incidents?cursor=W0luZmluaXR5XQ", None, 422, "INVALID_REQUEST"),
        ("GET", "/v1/silences?cursor=x", None, 422, "INVALID_REQUEST"),
        ("GET", "/v1/incidents?colour=red", None, 422, "INVALID_REQUEST"),
        ("GET", "/v1/silences/sil_0", None, 404, "UNKNOWN_SILENCE"),
        ("DELETE", "/v1/silences/sil_0", None, 404, "UNKNOWN_SILENCE"),
        ("POST", "/v1/silences", {"matchers": [], "minutes": 5}, 422, "INVALID_REQUEST"),
    ],
)
def test_what_is_not_there_or_cannot_be(
    api: TestClient, method: str, place: str, body: Any, status: int, code: str
) -> None:
    refused = api.request(method, place, json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, code)


def test_a_silence_from_its_beginning_to_its_end(api: TestClient, alert: Alert) -> None:
    body = {
        "matchers": [{"name": "stream", "value": "lob+y", "isRegex": True}],
        "minutes": 30,
        "reason": "cleaning",
    }
    made = api.post("/v1/silences", json=body)
    assert made.status_code == 201, made.text
    silence = made.json()
    assert silence["matchers"] == [
        {"name": "stream", "value": "lob+y", "isRegex": True, "isEqual": True}
    ]
    assert api.get("/v1/silences").json()["silences"] == [silence]
    assert api.get(f"/v1/silences/{silence['id']}").json() == silence
    alert.see(0.9, 0.9)
    (found,) = api.get("/v1/incidents?unseen=true").json()["incidents"]
    assert found["silenced_by"] == [silence["id"]]
    assert api.delete(f"/v1/silences/{silence['id']}").json() == silence
    assert api.get("/v1/silences").json()["silences"] == []


def test_silences_have_pages(api: TestClient) -> None:
    for minutes in (30, 10, 20):
        body = {"matchers": [{"name": "stream", "value": "x"}], "minutes": minutes}
        assert api.post("/v1/silences", json=body).status_code == 201
    whole = api.get("/v1/silences").json()
    assert whole["next_cursor"] is None
    ends = [silence["ends_at"] for silence in whole["silences"]]
    assert ends == sorted(ends)
    first = api.get("/v1/silences?limit=2").json()
    rest = api.get("/v1/silences", params={"limit": 2, "cursor": first["next_cursor"]}).json()
    assert first["silences"] + rest["silences"] == whole["silences"]
    assert rest["next_cursor"] is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"minutes": None}, "give either 'ends_at' or 'minutes'"),
        ({"matchers": [{"name": "stream", "value": ".*", "isRegex": True}]}, "silence everything"),
        ({"matchers": [{"name": "stream", "value": "(", "isRegex": True}]}, "regular expression"),
        ({"matchers": [{"name": "a", "value": "(a+)+b", "isRegex": True}]}, "repeats too much"),
        ({"matchers": [{"name": "a-b", "value": "x"}]}, "name"),
        ({"minutes": 1e9}, "minutes"),
        ({"starts_at": 0}, "write a time such as"),
        ({"starts_at": "1767225600"}, "write a time such as"),
    ],
)
def test_silences_that_cannot_be(api: TestClient, change: dict[str, Any], said: str) -> None:
    body = {"matchers": [{"name": "stream", "value": "lobby"}], "minutes": 5} | change
    refused = api.post("/v1/silences", json=body)
    assert refused.status_code == 422, refused.text
    assert said in refused.json()["error"]["message"]


def test_the_command_lists_shows_and_changes(run: Run, incident: dict[str, Any]) -> None:
    listed = run("incidents").stdout
    assert "lobby  open, warning" in listed
    assert incident["id"] in listed
    assert run("incidents", "--open", "--stream", "lobby", "--json").stdout.count("\n") == 1
    assert run("incidents", "--severity", "critical").stdout == "No incidents.\n"
    shown = run("incidents", incident["id"], "--ack", "--wrong", "--note", "a bus").stdout
    assert "2 yes, 0 no, 0 unknown" in shown
    assert "feedback      wrong" in shown
    done = json.loads(run("incidents", incident["id"], "--resolve", "--json").stdout)
    assert (done["resolve_reason"], done["acknowledged"]["note"]) == ("manual", "a bus")
    assert "resolved, warning, manual" in run("incidents").stdout
    assert run("incidents", "--ack").exit_code == 2
    missing = run("incidents", "inc_0")
    assert (missing.exit_code, "`streamer incidents` lists them" in missing.stderr) == (1, True)


def test_the_command_silences(run: Run, client: Service) -> None:
    added = run("silence", "add", "stream=lobby", "site!~north.*", "--for", "30m", "--json")
    silence = json.loads(added.stdout)
    assert silence["matchers"][1] == {
        "name": "site",
        "value": "north.*",
        "isRegex": True,
        "isEqual": False,
    }
    (kept,) = client.incidents.silences()
    assert kept.ends_at - kept.starts_at == timedelta(minutes=30)
    assert "stream=lobby, site!~north.*" in run("silence", "list").stdout
    assert run("silence", "end", silence["id"]).exit_code == 0
    assert run("silence", "list").stdout == "No silences.\n"
    assert run("silence", "add", "lobby").exit_code == 2
