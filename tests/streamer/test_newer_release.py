"""Records that a newer release has stored: unknown things are passed over, and nothing is lost."""

import itertools
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from pydantic import BaseModel
from typer.testing import CliRunner

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.api.app import create_app
from streamer.cli.app import app
from streamer.clock import SystemClock
from streamer.domain.error_info import ErrorInfo
from streamer.domain.frame import FrameRef, Gap
from streamer.domain.kinds import RequestKind
from streamer.domain.query import Query, QueryStatus
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.stream import StreamSpec, StreamState, StreamStatus
from streamer.domain.timestamp import utc_now
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.queues.lost_requests import LostRequests
from streamer.service import Service
from streamer.settings import Settings
from streamer.sources.streams import StreamRegistry
from workers.ingest.spec_follower import SpecFollower
from workers.registry_batch import RegistryBatch

URL = "rtsp://admin:s3cret@camera/live"


@pytest.fixture
def api(settings: Settings) -> Iterator[TestClient]:
    with TestClient(
        create_app(Service(settings)),
        base_url="http://127.0.0.1:8080",
        raise_server_exceptions=False,
    ) as opened:
        yield opened


def newer(value: Any) -> Any:
    """Add an unknown field to every object inside a JSON value."""
    if isinstance(value, list):
        return [newer(item) for item in value]
    if isinstance(value, dict):
        return {key: newer(item) for key, item in value.items()} | {"lens": {"fov": [1, 2]}}
    return value


NOW = utc_now()
_seconds = itertools.count()


def attach(registry: StreamRegistry, name: str) -> str:
    spec = StreamSpec(
        name=name,
        url=f"rtsp://{name}/",
        live=True,
        watches=[Watch(prompt="What?")],
        created_at=NOW + timedelta(seconds=next(_seconds)),
    )
    return registry.create(spec, URL).id


def rewrite(redis_client: redis.Redis, stream_id: str, **fields: Any) -> dict[str, Any]:
    """Store fields into the record of a stream, as another release would."""
    stored = json.loads(redis_client.hget(redis_keys.STREAMS, stream_id) or b"") | fields
    redis_client.hset(redis_keys.STREAMS, stream_id, json.dumps(stored))
    return stored


FRAME = FrameRef(
    stream_id="str_1", id="1-0", time=1.0, pts=0.0, width=32, height=24, change=0.5, detail=(1.0,)
)
REQUEST = ClipRequest(
    kind=RequestKind.WATCH,
    stream_id="str_1",
    stream_name="yard",
    watch_id="wch_1",
    start=NOW,
    end=NOW,
    prompt="What?",
    frames=[FRAME],
    gaps=[Gap(start=NOW, end=NOW)],
)
SPEC = StreamSpec(name="yard", url="rtsp://yard/", live=True, watches=[Watch(prompt="What?")])
RECORDS: list[BaseModel] = [
    FRAME,
    REQUEST,
    SPEC,
    StreamStatus(state=StreamState.RUNNING),
    Query.of(REQUEST),
    Result.answering(REQUEST, text="a dog"),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_unknown_fields_are_passed_over_wherever_they_are(record):
    stored = newer(record.model_dump(mode="json"))
    again = type(record).read(record.model_dump_json())
    assert type(record).read(stored) == type(record).read(json.dumps(stored)) == again
    # and where a user writes them, they are mistakes
    with pytest.raises(ValueError, match="lens"):
        type(record).model_validate(stored)


@pytest.mark.parametrize(
    ("kind", "field", "word"),
    [
        (Result, "kind", "digest"),
        (StreamStatus, "state", "hibernating"),
        (Query, "status", "postponed"),
    ],
)
def test_unknown_words_are_kept_as_they_are(kind, field, word):
    record = next(record for record in RECORDS if isinstance(record, kind))
    read = kind.read(record.model_dump(mode="json") | {field: word})
    assert getattr(read, field) == word
    assert json.loads(read.model_dump_json())[field] == word
    assert word not in json.dumps(kind.model_json_schema())


@pytest.mark.parametrize(
    "damage",
    [
        {"sampling": {"mode": "saliency", "budget": 3}},
        {"transport": "quic"},
        {"watches": [{"id": "wch_1", "prompt": "?", "response_format": {"type": "boxes"}}]},
        {"url": None, "urls": ["rtsp://a/", "rtsp://b/"]},
        {"name": ["yard"]},
    ],
)
def test_a_stream_that_cannot_be_read_hides_no_other(client, api, redis_client, damage):
    # given three streams, and a newer release that rewrote the middle one
    for name in ("first", "yard", "last"):
        attach(client.registry, name)
    stream_id = client.stream("yard").id
    rewrite(redis_client, stream_id, **damage)
    # then all are listed, that one with the reason
    listed = client.streams()
    assert [stream.name for stream in listed] == ["first", "yard", "last"]
    assert [stream.state.value for stream in listed] == ["connecting", "unreadable", "connecting"]
    assert listed[1].id == stream_id
    assert listed[1].error is not None
    assert listed[1].error.code is ErrorCode.RECORD_UNREADABLE
    assert next(iter(damage)) in listed[1].error.message
    answer = api.get("/v1/streams")
    assert answer.status_code == 200
    assert [stream["state"] for stream in answer.json()["streams"]] == [
        stream.state.value for stream in listed
    ]
    assert 'streamer_stream_state{stream="yard"' in api.get("/metrics").text
    # and what cannot be read is neither used nor overwritten
    stored = redis_client.hget(redis_keys.STREAMS, stream_id)
    for work in (
        lambda: client.stream("yard"),
        lambda: client.edit("yard", paused=True),
        lambda: client.watches.add("yard", Watch(prompt="Who?")),
        lambda: client.ask("Who?", "yard"),
    ):
        with pytest.raises(StreamerError) as caught:
            work()
        assert caught.value.code is ErrorCode.RECORD_UNREADABLE
    assert api.get("/v1/streams/yard").json()["error"]["code"] == "RECORD_UNREADABLE"
    assert redis_client.hget(redis_keys.STREAMS, stream_id) == stored
    # but it can be detached, and its name is free again
    client.detach("yard")
    assert [stream.name for stream in client.streams()] == ["first", "last"]
    attach(client.registry, "yard")


def test_the_command_line_lists_what_it_cannot_read(client, redis_client, settings, monkeypatch):
    monkeypatch.setenv("STREAMER_REDIS_URL", settings.redis_url or "")
    monkeypatch.setenv("STREAMER_DATA_DIR", str(settings.data_dir))
    attach(client.registry, "first")
    rewrite(redis_client, attach(client.registry, "yard"), transport="quic")
    # when the streams are listed, as text and as JSON
    lines = CliRunner().invoke(app, ["streams"]).stdout.splitlines()
    records = CliRunner().invoke(app, ["streams", "--json"]).stdout.splitlines()
    # then that one is there, with the reason, and shown alone it is an error
    assert [line.split()[:2] for line in lines if not line.startswith(" ")] == [
        ["first", "connecting"],
        ["yard", "unreadable"],
    ]
    assert any("RECORD_UNREADABLE" in line and "transport" in line for line in lines)
    assert [json.loads(line)["state"] for line in records] == ["connecting", "unreadable"]
    alone = CliRunner().invoke(app, ["streams", "yard"])
    assert alone.exit_code == 1
    assert CliRunner().invoke(app, ["detach", "yard"]).exit_code == 0
    assert [stream.name for stream in client.streams()] == ["first"]


@pytest.mark.parametrize("record", [b"nonsense", b"[]", b"{}", b"\xff\xfe", b"[" * 100_000])
def test_a_record_that_is_no_stream_is_listed_by_its_name(client, redis_client, record):
    stream_id = attach(client.registry, "yard")
    redis_client.hset(redis_keys.STREAMS, stream_id, record)
    (listed,) = client.streams()
    assert (listed.id, listed.name, listed.state) == (stream_id, "yard", StreamState.UNREADABLE)
    client.detach("yard")
    assert redis_client.keys("streamer:stream*") == []
    attach(client.registry, "yard")


@pytest.mark.parametrize(
    ("damage", "state"),
    [
        ({"counters": {"packets": "many"}}, "running"),
        ({"error": {"code": "LENS_CAP_ON", "message": "Take it off.", "hint": 1}}, "running"),
        ({"state": "hibernating"}, "hibernating"),
        ({"state": 7}, "unreadable"),
        ({"since": {"monotonic": 1}, "worker": 3}, "running"),
    ],
)
def test_a_status_that_cannot_be_read_costs_the_stream_nothing(client, redis_client, damage, state):
    stream_id = attach(client.registry, "yard")
    status = StreamStatus(state=StreamState.RUNNING, reported_at=utc_now())
    stored = status.model_dump(mode="json") | damage
    redis_client.set(redis_keys.status(stream_id), json.dumps(stored))
    (listed,) = client.streams()
    assert listed.state == state
    assert listed == client.stream("yard")
    said = [info.code for info in (listed.error, *listed.warnings) if info is not None]
    known = "state" in damage and state != "unreadable"
    assert said == (
        [] if known else ["LENS_CAP_ON"] if "error" in damage else ["RECORD_UNREADABLE"]
    )


def test_an_edit_keeps_the_fields_that_it_does_not_know(client, redis_client):
    # given a stream with two watches, all with fields of a newer release
    stream_id = attach(client.registry, "yard")
    client.watches.add("yard", Watch(id="wch_2", prompt="Who?"))
    stored = json.loads(redis_client.hget(redis_keys.STREAMS, stream_id))
    rewrite(redis_client, stream_id, **newer(stored))
    before = json.loads(redis_client.hget(redis_keys.STREAMS, stream_id))
    # when this release pauses the stream, changes a watch and adds another
    client.edit("yard", paused=True)
    client.watches.edit("yard", "wch_2", prompt="Who is it?")
    added = client.watches.add("yard", Watch(prompt="Why?"))
    # then only that has changed
    after = json.loads(redis_client.hget(redis_keys.STREAMS, stream_id))
    expected = before | {"paused": True}
    expected["watches"][1]["prompt"] = "Who is it?"
    expected["watches"][1]["response_format"] = {"type": "text"}
    expected["watches"].append(added.model_dump(mode="json", exclude={"alert", "model"}))
    assert after == expected
    assert client.stream("yard").paused


def test_a_stream_whose_edit_cannot_be_read_runs_on_as_it_was(client, redis_client, settings):
    stream_id = attach(client.registry, "yard")
    spec = client.registry.find(stream_id)
    registry = RegistryBatch(client.registry, SystemClock())
    follower = SpecFollower(registry, spec, lease=settings.lease, clock=SystemClock())
    rewrite(redis_client, stream_id, sampling={"mode": "saliency"})
    assert not follower.look(fresh=True)
    assert (follower.spec, follower.detached, follower.lost) == (spec, False, False)
    rewrite(redis_client, stream_id, sampling={"mode": "fps", "fps": 2})
    assert follower.look(fresh=True)


def test_the_answer_of_a_newer_worker_is_shown_or_said_to_be_unreadable(client, api, redis_client):
    # given three questions that a newer worker has answered
    client.jobs.start_ingest(attach(client.registry, "yard"))
    stream = client.stream("yard")
    client.frames.put(stream.id, b"jpeg", Measures(8, 8, change=0.0), time=time.time(), pts=0.0)
    asked = [client.ask("What?", "yard") for _ in range(3)]
    results = [
        Result.answering(REQUEST, text="a dog").model_dump(mode="json") | {"request_id": query.id}
        for query in asked
    ]
    results[0] = newer(results[0]) | {"kind": "digest"}
    results[1] = results[1] | {"text": [{"box": [1, 2, 3, 4]}]}
    results[2] = results[2] | {"kind": "error", "error": {"code": "LENS_CAP", "message": "Off!"}}
    for query, result in zip(asked, results, strict=True):
        redis_client.set(redis_keys.answer(query.id), json.dumps(result))
        redis_client.xadd(redis_keys.RESULTS, {"json": json.dumps(result)})
    # then what is known of them is shown, one by one, in the list, and to those who follow
    found = [client.query(query.id, wait=5) for query in asked]
    assert [query.status for query in found] == ["done", "failed", "failed"]
    assert [str(query.result.kind) for query in found] == ["digest", "error", "error"]
    assert [query.result.error and query.result.error.code for query in found] == [
        None,
        "RECORD_UNREADABLE",
        "LENS_CAP",
    ]
    assert client.queries() == found[::-1]
    assert api.get("/v1/queries").status_code == 200
    followed = [result for _, result in client.queue.read("0-0")]
    assert followed == [query.result for query in found]


def test_a_query_that_cannot_be_read_hides_no_other(client, api, redis_client):
    stream = client.registry.get(attach(client.registry, "yard"))
    client.frames.put(stream.id, b"jpeg", Measures(8, 8, change=0.0), time=time.time(), pts=0.0)
    good, bad, wider = (client.ask("What?", "yard") for _ in range(3))
    redis_client.set(redis_keys.query(bad.id), json.dumps({"id": bad.id, "streams": ["yard"]}))
    stored = newer(json.loads(redis_client.get(redis_keys.query(wider.id))))
    redis_client.set(redis_keys.query(wider.id), json.dumps(stored | {"status": "postponed"}))
    assert {query.id for query in client.queries()} == {good.id, wider.id}
    assert client.query(wider.id).status is QueryStatus.QUEUED
    assert api.get(f"/v1/queries/{bad.id}").json()["error"]["code"] == "RECORD_UNREADABLE"


@pytest.mark.parametrize("readable", [True, False])
def test_a_query_of_a_newer_release_can_be_refused(client, redis_client, readable):
    attach(client.registry, "yard")
    stream = client.stream("yard")
    client.frames.put(stream.id, b"jpeg", Measures(8, 8, change=0.0), time=time.time(), pts=0.0)
    query = client.ask("What?", "yard")
    stored = newer(json.loads(redis_client.get(redis_keys.query(query.id))))
    if not readable:
        stored["stream_name"] = ["yard"]
    redis_client.set(redis_keys.query(query.id), json.dumps(stored))
    error = ErrorInfo(code=ErrorCode.INVALID_REQUEST, message="Too large.")
    assert LostRequests(redis_client, client.queue).refuse(query.id, error)
    result = client.queue.get(query.id)
    assert (result.error, result.prompt) == (error, "What?" if readable else "")


def test_frames_of_a_newer_ingest_worker_are_found_and_others_passed_over(client, redis_client):
    stream_id = attach(client.registry, "yard")
    for pts in range(3):
        client.frames.put(stream_id, b"jpeg", Measures(8, 8, change=0.0), time=time.time(), pts=pts)
    index = redis_keys.frame_index(stream_id)
    entries = redis_client.xrange(index)
    redis_client.delete(index)
    for number, (frame_id, fields) in enumerate(entries):
        ref = newer(json.loads(fields[b"ref"]))
        if number == 1:
            ref["width"] = {"pixels": 8}
        redis_client.xadd(index, fields | {b"ref": json.dumps(ref)}, id=frame_id)
    assert [ref.pts for ref in client.frames.newest(stream_id, 10)] == [0, 2]


def test_what_users_send_is_still_checked(api, client):
    attach(client.registry, "yard")
    stream_id = client.stream("yard").id
    for method, path, body in (
        ("POST", "/v1/streams", {"url": URL, "lens": 1}),
        ("POST", "/v1/streams", {"url": URL, "sampling": {"mode": "fps", "lens": 1}}),
        ("POST", "/v1/streams", {"url": URL, "sampling": {"mode": "saliency"}}),
        ("PATCH", f"/v1/streams/{stream_id}", {"lens": 1}),
        ("POST", f"/v1/streams/{stream_id}/watches", {"prompt": "?", "lens": 1}),
        ("POST", "/v1/queries", {"prompt": "?", "lens": 1}),
        ("POST", "/v1/queries", {"prompt": "?", "response_format": {"type": "text", "lens": 1}}),
    ):
        answer = api.request(method, path, json=body)
        assert answer.status_code == 422, body
        assert answer.json()["error"]["code"] == "INVALID_REQUEST"


def test_what_a_newer_worker_reports_beside_numbers_is_passed_over(client, api, redis_client):
    from rq import SimpleWorker

    worker = SimpleWorker(["queries"], connection=redis_client, name="newer")
    worker.register_birth()
    reported = {"slots": "4", "version": "9.0", "free": "2 of 4", "cells": "nan"}
    redis_client.hset(redis_keys.worker("newer"), mapping=reported)
    assert client.jobs.worker_stats() == {"newer": {"slots": 4.0, "version": 9.0}}
    redis_client.set(redis_keys.RECORDER, json.dumps({"trouble": None, "unreadable": 2, "x": 1}))
    assert "streamer_results_unreadable_total 2.0" in api.get("/metrics").text
