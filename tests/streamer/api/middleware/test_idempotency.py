"""A POST that is sent again with the same `Idempotency-Key`."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import redis
from fastapi import APIRouter
from fastapi.testclient import TestClient

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.api.app import create_app
from streamer.api.middleware import idempotency
from streamer.api.middleware.idempotency import IDEMPOTENCY_SECONDS, IdempotentRoute
from streamer.api_keys import ApiKeys
from streamer.domain.scope import Scope
from streamer.service import Service
from streamer.settings import Settings
from tests.support.fork_server import run_python
from tests.support.installation import clean_environment
from tests.support.videos import write_video

HERE = "http://127.0.0.1:8080"
KEY = {"idempotency-key": "4f6c2d-1"}
STREAM: dict[str, Any] = {"url": "rtsp://cam.invalid/x", "probe": False}
WATCH = {"prompt": "Is the gate open?"}
QUERY = {"prompt": "What?", "stream": "yard", "stale_ok": True}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"lease": 2.0})


@pytest.fixture
def client(settings: Settings) -> Service:
    return Service(settings)


@pytest.fixture
def api(client: Service) -> Iterator[TestClient]:
    app = create_app(client)
    with TestClient(app, base_url=HERE, raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def yard(client: Service) -> str:
    stream = client.attach("rtsp://cam.invalid/yard", "yard", probe=False, watches=[])
    jpeg = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    now = client.connections.clock.time()
    client.frames.put(
        stream.id, jpeg, Measures(32, 24, change=0.0), time=now, pts=0.0, decode_ms=1.0
    )
    return stream.id


def code_of(response: Any) -> str:
    return str(response.json()["error"]["code"])


@pytest.mark.parametrize(
    ("path", "body", "listed"),
    [
        ("/v1/streams", STREAM, "/v1/streams"),
        ("/v1/queries", QUERY, "/v1/queries"),
        ("/v1/streams/yard/watches", WATCH, "/v1/streams/yard/watches"),
    ],
)
def test_the_second_answer_is_the_first(
    api: TestClient, yard: str, path: str, body: dict[str, Any], listed: str
) -> None:
    # given
    before = _count(api, listed)
    # when
    first, second = (api.post(path, json=body, headers=KEY) for _ in range(2))
    # then
    assert first.is_success, first.text
    assert "idempotent-replayed" not in first.headers
    assert second.headers["idempotent-replayed"] == "true"
    assert (second.status_code, second.json()) == (first.status_code, first.json())
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    assert _count(api, listed) == before + 1
    # and another key, or none, is another request
    api.post(path, json=body, headers={"idempotency-key": "another"})
    api.post(path, json=body)
    assert _count(api, listed) == before + 3


def _count(api: TestClient, path: str) -> int:
    return len(api.get(path).json()[path.rpartition("/")[2]])


def test_a_file_is_uploaded_once(api: TestClient, tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    write_video(video, seconds=0.5, fps=10)
    first, second = (
        api.post("/v1/files", files={"file": ("clip.mp4", video.read_bytes())}, headers=KEY)
        for _ in range(2)
    )
    assert first.status_code == 201, first.text
    assert second.json() == first.json()
    assert second.headers["idempotent-replayed"] == "true"
    assert _count(api, "/v1/files") == 1


def test_another_request_with_the_same_key_is_refused(api: TestClient, yard: str) -> None:
    # given
    api.post("/v1/queries", json=QUERY, headers=KEY)
    # then neither another body nor another path may use its key
    for path, body in (("/v1/queries", QUERY | {"prompt": "Who?"}), ("/v1/streams", QUERY)):
        refused = api.post(path, json=body, headers=KEY)
        assert (refused.status_code, code_of(refused)) == (422, "IDEMPOTENCY_MISMATCH")
        assert refused.json()["error"]["param"] == "Idempotency-Key"
        assert refused.headers["x-should-retry"] == "false"


def test_a_call_that_failed_may_be_corrected(api: TestClient, yard: str) -> None:
    assert api.post("/v1/queries", json=QUERY | {"prompt": " "}, headers=KEY).status_code == 422
    answer = api.post("/v1/queries", json=QUERY, headers=KEY)
    assert answer.status_code == 202
    assert "idempotent-replayed" not in answer.headers


@pytest.mark.parametrize("key", ["", "a b", "é", "x" * 256])
def test_a_key_that_is_none(api: TestClient, yard: str, key: str) -> None:
    answer = api.post("/v1/queries", json=QUERY, headers={b"idempotency-key": key.encode()})
    assert (answer.status_code, code_of(answer)) == (422, "INVALID_REQUEST")


def test_keys_belong_to_their_api_key(client: Service, yard: str) -> None:
    # given two callers that choose the same key
    keys = ApiKeys(client.connections.main, client.settings)
    callers = [keys.add(name, list(Scope))[1] for name in ("first", "second")]
    with TestClient(create_app(client), base_url=HERE) as api:
        made = [
            api.post("/v1/queries", json=QUERY, headers=KEY | {"authorization": f"Bearer {caller}"})
            for caller in callers
        ]
    # then each gets a query of its own
    assert made[0].json()["id"] != made[1].json()["id"]
    assert "idempotent-replayed" not in made[1].headers


def test_while_the_first_one_runs_the_second_is_told_to_wait(client: Service) -> None:
    # given a call that runs for as long as the test wants, longer than the lease
    began, release, calls = threading.Event(), threading.Event(), []
    app = create_app(client)
    router = APIRouter(route_class=IdempotentRoute)

    @router.post("/slow")
    def slow() -> dict[str, int]:
        calls.append(1)
        began.set()
        release.wait(60)
        return {"calls": len(calls)}

    app.include_router(router)
    with TestClient(app, base_url=HERE) as api:
        answers: list[Any] = []
        first = threading.Thread(
            target=lambda: answers.append(api.post("/slow", json={}, headers=KEY))
        )
        first.start()
        assert began.wait(120)
        # when the same comes again, also after the lease would have ended
        for _ in range(2):
            second = api.post("/slow", json={}, headers=KEY)
            assert (second.status_code, code_of(second)) == (409, "IDEMPOTENCY_IN_PROGRESS")
            assert int(second.headers["retry-after"]) > 0
            assert "x-should-retry" not in second.headers
            threading.Event().wait(client.settings.lease * 1.2)
        # then it is answered from the first one in the end
        release.set()
        first.join()
        assert api.post("/slow", json={}, headers=KEY).json() == answers[0].json() == {"calls": 1}


POST_AND_DIE = """
import json, os, signal, sys
from fastapi.testclient import TestClient
from streamer.api.app import create_app
from streamer.service import Service
from streamer.settings import Settings

owner, method, base_url, path, body, headers = json.loads(sys.argv[1])
client = Service(Settings())
owner = getattr(client, owner) if owner else client
work = getattr(owner, method)

def work_and_die(*arguments, **options):
    work(*arguments, **options)
    os.kill(os.getpid(), signal.SIGKILL)

setattr(owner, method, work_and_die)
with TestClient(create_app(client), base_url=base_url) as api:
    api.post(path, json=body, headers=headers)
"""
"""Serves one call, and is killed when the call has done its work."""


@pytest.mark.parametrize(
    ("owner", "method", "path", "body"),
    [
        ("", "submit", "/v1/queries", QUERY),
        ("", "attach", "/v1/streams", STREAM),
        ("watches", "add", "/v1/streams/yard/watches", WATCH),
    ],
)
def test_nothing_happens_twice_when_the_api_is_killed_before_it_answers(
    api: TestClient,
    settings: Settings,
    yard: str,
    owner: str,
    method: str,
    path: str,
    body: dict[str, Any],
) -> None:
    # given an API process that is killed between accepting and answering
    killed = run_python(
        ["-c", POST_AND_DIE, json.dumps([owner, method, HERE, path, body, KEY])],
        env=clean_environment(
            STREAMER_REDIS_URL=str(settings.redis_url),
            STREAMER_DATA_DIR=str(settings.data_dir),
            STREAMER_LEASE=str(settings.lease),
        ),
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (created,) = _ids(api, path)
    # when the caller tries again, at another process, until the lease of the first has ended
    while True:
        answer = api.post(path, json=body, headers=KEY)
        if answer.status_code != 409:
            break
        threading.Event().wait(0.2)
    # then it gets what the first one created
    assert answer.is_success, answer.text
    assert answer.json()["id"] == created
    assert _ids(api, path) == [created]


def _ids(api: TestClient, path: str) -> list[str]:
    listed = api.get(path).json()[path.rpartition("/")[2]]
    return [each["id"] for each in listed if each.get("name") != "yard"]


def test_records_have_an_end(
    api: TestClient, yard: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given room for two keys
    monkeypatch.setattr(idempotency, "MAX_IDEMPOTENCY_KEYS", 2)
    # when three are used
    for number in range(3):
        headers = {"idempotency-key": f"k{number}"}
        assert api.post("/v1/queries", json=QUERY, headers=headers).status_code == 202
    # then the newest two are kept, for a day
    records = redis_client.keys(redis_keys.idempotency("*"))
    assert len(records) == 2
    for name in [*records, redis_keys.idempotency_index("")]:
        assert 0 < redis_client.ttl(name) <= IDEMPOTENCY_SECONDS
    assert (
        "idempotent-replayed"
        not in api.post("/v1/queries", json=QUERY, headers={"idempotency-key": "k0"}).headers
    )
