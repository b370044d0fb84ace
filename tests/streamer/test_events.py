import contextlib
import itertools
import json
import secrets

import pytest
import redis

from streamer import redis_keys
from streamer.domain.error_info import ErrorInfo
from streamer.domain.result import Result
from streamer.domain.stream import StreamSpec, StreamState, StreamStatus
from streamer.errors import ErrorCode
from streamer.events import MAX_AGE, MAX_EVENTS, Events, EventType, is_position
from streamer.local.redis_server import EmbeddedServer
from streamer.queues.results import Results
from streamer.redis_client.connections import connect
from streamer.sources.streams import StreamRegistry


@pytest.fixture
def events(redis_client):
    return Events(redis_client)


@pytest.fixture
def registry(redis_client):
    return StreamRegistry(redis_client)


def answer(request_id="qry_1", **fields):
    return Result(
        request_id=request_id,
        kind="answer",
        stream_id="str_1",
        stream_name="yard",
        prompt="What is there?",
        **fields,
    )


def facts(events, after="0"):
    return [(event.type, json.loads(event.data)) for event in events.read(after) if not event.lost]


def test_an_event_is_read_as_it_was_published(events):
    start = events.position()

    event_id = events.publish(
        EventType.INCIDENT_OPENED, {"id": "inc_1"}, stream_id="str_1", stream_name="yard"
    )

    (event,) = events.read(start)
    assert json.loads(event.json) == {
        "id": event_id,
        "type": "incident.opened",
        "time": event.time,
        "stream_id": "str_1",
        "stream_name": "yard",
        "data": {"id": "inc_1"},
    }
    assert events.read(event_id) == []


def test_an_event_of_no_stream_names_none(events):
    events.publish(EventType.WORKER_STATE_CHANGED, {"name": "w"})

    (event,) = events.read("0")
    assert json.loads(event.json)["stream_id"] is None


def test_a_result_and_the_end_of_its_query_are_announced_once(redis_client, settings, events):
    results = Results(redis_client, settings)

    first = answer(text="a car")
    results.publish(first, owner_id=None)
    results.publish(answer(text="again"), owner_id=None)

    created, finished = facts(events)
    assert created == ("result.created", json.loads(first.model_dump_json()))
    assert finished == (
        "query.finished",
        {"id": "qry_1", "status": "done", "result_id": first.id},
    )


def test_the_result_of_a_watch_finishes_no_query(redis_client, settings, events):
    Results(redis_client, settings).publish(answer("req_1", text="a car"), owner_id="wch_1")

    assert [kind for kind, _ in facts(events)] == ["result.created"]


@pytest.mark.parametrize(
    ("code", "status"), [(ErrorCode.CANCELLED, "cancelled"), (ErrorCode.TIMEOUT, "failed")]
)
def test_a_query_without_an_answer_finishes_too(redis_client, settings, events, code, status):
    failed = answer(error=ErrorInfo(code=code, message="It ended."))

    Results(redis_client, settings).publish(failed, owner_id=None)

    assert facts(events)[1][1]["status"] == status


def states(events):
    return [
        (data["previous"], data["state"])
        for kind, data in facts(events)
        if kind == "stream.state_changed"
    ]


def test_a_stream_is_announced_from_its_attachment_to_its_end(registry, events):
    spec = StreamSpec(name="yard", url="rtsp://camera", live=True)

    registry.create(spec, "rtsp://camera")
    registry.create(spec, "rtsp://camera")  # repeated, because the reply was lost
    registry.save_status(spec.id, StreamStatus(state=StreamState.CONNECTING))
    for _ in range(3):
        registry.save_status(spec.id, StreamStatus(state=StreamState.RUNNING))
    registry.save_status(spec.id, StreamStatus(state=StreamState.PAUSED))
    registry.delete("yard")

    assert states(events) == [
        (None, "connecting"),
        ("connecting", "running"),
        ("running", "paused"),
        ("paused", "detached"),
    ]
    assert {(e.stream_id, e.stream_name) for e in events.read("0")} == {(spec.id, "yard")}


def test_an_edit_is_announced_with_what_it_changed(registry, events):
    # given a stream that has failed
    spec = StreamSpec(name="yard", url="rtsp://camera", live=True)
    registry.create(spec, "rtsp://camera")
    error = ErrorInfo(code=ErrorCode.STREAM_TIMEOUT, message="It is silent.")
    registry.save_status(spec.id, StreamStatus(state=StreamState.FAILED, error=error))
    start = events.position()
    # when it is edited: twice, in vain, with another password, and as an edit whose reply was lost
    registry.update("yard", name="gate", paused=True)
    registry.update("gate", name="gate")
    registry.update("gate", url="rtsp://camera", secret_url="rtsp://me:secret@camera")
    registry.update("gate", paused=False)
    registry.update("gate", paused=False)
    # then
    found = [(event.stream_name, json.loads(event.data)) for event in events.read(start)]
    assert [(name, data["changed"]) for name, data in found] == [
        ("gate", ["name", "paused"]),
        ("gate", ["url"]),
        ("gate", ["paused"]),
    ]
    for _, data in found:
        assert data["state"] == data["previous"] == "failed"
        assert data["error"] == {"code": "STREAM_TIMEOUT", "message": "It is silent."}
    assert "secret" not in str(found)


def test_another_reason_for_the_same_state_is_announced(registry, events):
    spec = StreamSpec(name="yard", url="rtsp://camera", live=True)
    registry.create(spec, "rtsp://camera")
    start = events.position()
    codes = [ErrorCode.STREAM_TIMEOUT, ErrorCode.STREAM_TIMEOUT, ErrorCode.STREAM_AUTH_FAILED]

    for n, code in enumerate(codes):
        error = ErrorInfo(code=code, message=f'Attempt {n}: "state":"running".')
        registry.save_status(spec.id, StreamStatus(state=StreamState.RECONNECTING, error=error))

    seen = [data["error"]["code"] for _, data in facts(events, start)]
    assert seen == ["STREAM_TIMEOUT", "STREAM_AUTH_FAILED"]


def test_a_renamed_stream_is_announced_by_its_new_name(registry, events):
    spec = StreamSpec(name="yard", url="rtsp://camera", live=True)
    registry.create(spec, "rtsp://camera")
    registry.update("yard", name="gate")

    registry.save_status(spec.id, StreamStatus(state=StreamState.RUNNING))

    assert events.read("0")[-1].stream_name == "gate"


def test_a_status_that_cannot_be_read_stops_no_report(registry, redis_client, events):
    spec = StreamSpec(name="yard", url="rtsp://camera", live=True)
    registry.create(spec, "rtsp://camera")
    redis_client.set(redis_keys.status(spec.id), "nonsense")

    assert registry.save_status(spec.id, StreamStatus(state=StreamState.RUNNING))

    assert states(events)[-1] == ("connecting", "running")


def add(redis_client, ids):
    pipe = redis_client.pipeline()
    for entry_id in ids:
        pipe.xadd(redis_keys.EVENTS, {"type": "x", "data": "{}"}, id=entry_id)
    pipe.execute()


def test_old_events_go(redis_client, events):
    add(redis_client, [f"{n}-0" for n in range(1, 251)])

    events.publish(EventType.RESULT_CREATED, {})

    assert redis_client.xlen(redis_keys.EVENTS) < 250
    assert 0 < redis_client.ttl(redis_keys.EVENTS) <= MAX_AGE


def test_no_more_events_are_kept_than_the_limit(redis_client, events):
    add(redis_client, ["*"] * (MAX_EVENTS + 300))

    events.publish(EventType.RESULT_CREATED, {})

    assert redis_client.xlen(redis_keys.EVENTS) < MAX_EVENTS + 300


def test_a_full_server_gives_events_up_and_says_so(tmp_path, settings):
    with EmbeddedServer(tmp_path / "small", persistent=False, max_memory=6 << 20) as server:
        client = connect(server.url)
        events = Events(client)
        events.publish(EventType.RESULT_CREATED, {"n": 1})
        start = events.position()
        fill(client)
        client.delete(redis_keys.ROOM)  # as after a second

        # when results are published on a server without room
        results = Results(client, settings)
        for n in range(3):
            assert results.publish(answer(f"qry_{n}", text="a car"), owner_id=None)

        # then each answer is there, and readers of events learn of one gap
        kept = results.get("qry_2")
        assert kept is not None
        assert kept.text == "a car"
        assert [event.lost for event in events.read(start)] == [True]
        assert events.lost() == 6
        # and events are kept again as soon as there is room
        for key in client.scan_iter("other:*"):
            client.delete(key)
        events.publish(EventType.RESULT_CREATED, {"n": 2})
        assert [event.lost for event in events.read(start)] == [True, False]
        client.close()


def fill(client):
    """Fill the server to its last byte with what is not ours."""
    for size in (100_000, 1_000, 10):
        with contextlib.suppress(redis.exceptions.OutOfMemoryError):
            for number in itertools.count():
                client.set(f"other:{size}:{number}", secrets.token_bytes(size))


def test_a_position_tells_whether_all_events_since_are_kept(redis_client, events):
    begun = events.position()
    assert events.kept_since(begun)
    ids = [events.publish(EventType.RESULT_CREATED, {"n": n}) for n in range(4)]
    assert events.kept_since(begun)

    redis_client.xtrim(redis_keys.EVENTS, minid=ids[2], approximate=False)

    assert not events.kept_since(ids[0])
    assert events.kept_since(ids[2])
    assert not events.kept_since("0")
    assert events.oldest() == ids[2]


def test_a_position_stays_when_every_event_has_aged(redis_client, events):
    last = events.publish(EventType.RESULT_CREATED, {})
    redis_client.xtrim(redis_keys.EVENTS, maxlen=0, approximate=False)

    assert events.position() == last
    assert events.kept_since(last)


def test_what_is_a_position():
    assert is_position("1732588000123-0")
    assert is_position("0")
    for text in ("", "-", "1-", "-1", "1-2-3", "$", "1.5", "²", "9" * 20):
        assert not is_position(text)
