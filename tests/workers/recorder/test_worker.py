"""The recorder, in this process and as `python -m workers.recorder`."""

import json
import os
import socket
import sqlite3
import threading
import time
from datetime import timedelta

import pytest

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.alert_rule import AlertRule
from streamer.clock import SystemClock
from streamer.domain.result import Result
from streamer.domain.timestamp import to_datetime, utc_now
from streamer.frames.store import FrameStore, Retention
from streamer.incidents.store import Incidents
from streamer.queues.results import Results
from streamer.timeline.expiry import ResultExpiry
from streamer.timeline.results import Timeline
from workers.recorder.worker import Recorder

GROUP = redis_keys.RECORDER_GROUP


@pytest.fixture
def timeline(settings):
    opened = Timeline(settings.timeline_url)
    yield opened
    opened.close()


@pytest.fixture
def results(redis_client, settings):
    return Results(redis_client, settings)


def publish(results, *names):
    for name in names:
        results.publish(
            Result(
                request_id=name,
                kind="caption",
                stream_id="str_1",
                stream_name="yard",
                prompt="?",
                text=name,
            ),
            owner_id=None,
        )


def pending(client):
    return client.xpending(redis_keys.RESULTS, GROUP)["pending"]


def recorder(client, timeline, **kwargs):
    made = Recorder(client, timeline, stopping=threading.Event(), **kwargs)
    made.join()
    return made


def test_results_published_before_and_after_its_start_are_recorded(results, redis_client, timeline):
    publish(results, "before")
    recording = recorder(redis_client, timeline)
    publish(results, "after")
    assert recording.step() == 2
    assert timeline.get("before").text == "before"
    assert pending(redis_client) == 0


def test_results_that_a_dead_recorder_took_are_recorded_by_another(results, redis_client, timeline):
    # given a recorder that died with entries unrecorded
    publish(results, "a", "b")
    recording = recorder(redis_client, timeline, claim_after=0.0)
    redis_client.xreadgroup(GROUP, "dead", {redis_keys.RESULTS: ">"})
    assert pending(redis_client) == 2
    # then another records them
    assert recording.step() == 2
    assert pending(redis_client) == 0
    assert timeline.get("b") is not None


def test_only_what_is_in_the_database_is_acknowledged(results, redis_client, settings):
    # given a database without its table
    timeline = Timeline(settings.timeline_url)
    publish(results, "a")
    stopping = threading.Event()
    recording = Recorder(redis_client, timeline, stopping=stopping, claim_after=0.0)
    blocker = sqlite3.connect(settings.data_dir / "timeline.db", isolation_level=None)
    blocker.execute("ALTER TABLE results RENAME TO elsewhere")
    thread = threading.Thread(target=recording.run)
    thread.start()
    try:
        # when the recorder has tried
        stopping.wait(1.0)
        assert pending(redis_client) == 1
        # and the database comes back
        blocker.execute("ALTER TABLE elsewhere RENAME TO results")
        blocker.close()
        for _ in range(100):
            if timeline.get("a"):
                break
            stopping.wait(0.1)
        # then it is recorded after all
        assert timeline.get("a") is not None
    finally:
        stopping.set()
        thread.join()
        timeline.close()
    assert pending(redis_client) == 0


def newer(name, **fields):
    """Return a result as a newer release would store it."""
    result = Result(
        request_id=name, kind="caption", stream_id="str_1", stream_name="yard", prompt="?", text="x"
    )
    return json.dumps(result.model_dump(mode="json") | fields)


def test_a_result_of_a_newer_release_is_recorded(redis_client, timeline):
    redis_client.xadd(redis_keys.RESULTS, {"json": newer("a", kind="summary", lens={"fov": 1})})
    failed = {"code": "LENS_CAP", "message": "Take it off.", "hint": 1}
    redis_client.xadd(redis_keys.RESULTS, {"json": newer("b", kind="error", error=failed)})
    recording = recorder(redis_client, timeline)
    assert recording.step() == 2
    assert pending(redis_client) == recording.left_count == 0
    assert timeline.get("a").kind == "summary"
    assert timeline.get("b").error.code == "LENS_CAP"


@pytest.mark.parametrize(
    "fields",
    [
        {"json": newer("bad", text=[{"box": [1, 2]}])},
        {"json": newer("bad", frames="many")},
        {"json": "nonsense"},
        {"msgpack": "x"},
    ],
)
def test_an_unreadable_result_waits_for_a_newer_recorder(results, redis_client, timeline, fields):
    # given results around one that this recorder cannot read
    publish(results, "a")
    redis_client.xadd(redis_keys.RESULTS, fields)
    publish(results, "b")
    old = recorder(redis_client, timeline, claim_after=0.0)
    # when it records, and looks again at what is pending, again and again
    assert [old.step() for _ in range(3)] == [2, 0, 0]
    publish(results, "c")
    assert old.step() == 1
    # then the others are recorded, and that one is still there, counted once
    assert all(timeline.get(name) is not None for name in "abc")
    assert pending(redis_client) == old.left_count == 1
    old.beat()
    assert json.loads(redis_client.get(redis_keys.RECORDER))["unreadable"] == 1
    # and when it leaves, a recorder that can read the result takes it over
    old.leave()
    (entry,) = redis_client.xpending_range(redis_keys.RESULTS, GROUP, "-", "+", 10)
    claimed = redis_client.xautoclaim(redis_keys.RESULTS, GROUP, "newer", min_idle_time=0)
    assert claimed[1] == [
        (entry["message_id"], {k.encode(): v.encode() for k, v in fields.items()})
    ]


def test_any_number_of_unreadable_results_hides_no_other(results, redis_client, timeline):
    # given more of them than one look takes, pending with a dead recorder, and a good one behind
    with redis_client.pipeline() as pipeline:
        for _ in range(3000):
            pipeline.xadd(redis_keys.RESULTS, {"json": "nonsense"})
        pipeline.execute()
    publish(results, "a")
    recording = recorder(redis_client, timeline, claim_after=0.0)
    redis_client.xreadgroup(GROUP, "dead", {redis_keys.RESULTS: ">"})
    for _ in range(20):
        recording.step()
    assert timeline.get("a") is not None
    assert pending(redis_client) == recording.left_count == 3000


def test_a_result_that_the_database_refuses_blocks_no_other(results, redis_client, timeline):
    # given a table in which a prompt must not be "?!"
    with sqlite3.connect(str(timeline.database.engine.url.database)) as database:
        database.execute(
            "CREATE TRIGGER strict BEFORE INSERT ON results WHEN NEW.prompt = '?!' "
            "BEGIN SELECT RAISE(ABORT, 'too long for this column'); END"
        )
    database.close()
    publish(results, "a")
    redis_client.xadd(redis_keys.RESULTS, {"json": newer("bad", prompt="?!")})
    publish(results, "b")
    recording = recorder(redis_client, timeline)
    assert recording.step() == 2
    assert timeline.get("b") is not None
    assert pending(redis_client) == recording.left_count == 1


def test_it_survives_a_server_that_lost_its_data(results, redis_client, timeline):
    stopping = threading.Event()
    recording = Recorder(redis_client, timeline, stopping=stopping)
    thread = threading.Thread(target=recording.run)
    thread.start()
    try:
        publish(results, "a")
        for _ in range(100):
            if timeline.get("a"):
                break
            stopping.wait(0.1)
        redis_client.flushall()
        publish(results, "b")
        for _ in range(100):
            if timeline.get("b"):
                break
            stopping.wait(0.1)
        assert timeline.get("b") is not None
    finally:
        stopping.set()
        thread.join()


def test_leaving_removes_its_name_unless_it_holds_unrecorded_results(
    results, redis_client, timeline
):
    recording = recorder(redis_client, timeline)
    name = f"recorder-{socket.gethostname()}-{os.getpid()}"
    publish(results, "a")
    redis_client.xreadgroup(GROUP, name, {redis_keys.RESULTS: ">"})
    recording.leave()
    assert len(redis_client.xinfo_consumers(redis_keys.RESULTS, GROUP)) == 1
    redis_client.xack(redis_keys.RESULTS, GROUP, redis_client.xrange(redis_keys.RESULTS)[0][0])
    recording.leave()
    assert redis_client.xinfo_consumers(redis_keys.RESULTS, GROUP) == []


def test_the_process_records_everything_although_it_is_killed_once(
    results, redis_client, settings, worker_process, eventually
):
    first = worker_process("recorder", STREAMER_LEASE="2")
    publish(results, *(f"a{i}" for i in range(50)))
    first.kill()
    publish(results, *(f"b{i}" for i in range(50)))
    second = worker_process("recorder", STREAMER_LEASE="2")
    timeline = Timeline(settings.timeline_url)
    eventually(lambda: len(timeline.query(limit=1000).results) == 100)
    eventually(lambda: pending(redis_client) == 0)
    timeline.close()
    second.terminate()
    assert second.wait() == 0


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (
            {"STREAMER_DATABASE_URL": "sqlite:////proc/no/where.db"},
            "folder of the timeline cannot be created",
        ),
        ({"STREAMER_REDIS_URL": "redis://:s3cret@127.0.0.1:1/0"}, "does not answer"),
    ],
)
def test_a_failure_at_the_start_is_one_sentence(worker_process, env, expected):
    worker = worker_process("recorder", ready=False, STREAMER_LOG_LEVEL="info", **env)
    assert worker.wait() == 1
    assert expected in worker.output
    (line,) = worker.output.strip().splitlines()
    assert expected in json.loads(line)["event"]  # as everything in the log
    assert "s3cret" not in worker.output


def alert_result(client, place, probability):
    """Return the result of a window of an alert whose newest frame is stored."""
    moment = time.time() - 100 + 10 * place
    FrameStore(client, Retention(age=300, max_frames=500)).put(
        "str_1", f"jpeg {place}".encode(), Measures(32, 24, change=0.0), time=moment, pts=moment
    )
    return Result(
        request_id=f"req_{place}",
        kind="alert",
        stream_id="str_1",
        stream_name="yard",
        watch_id="wch_1",
        start=to_datetime(moment - 9),
        end=to_datetime(moment + 1),
        frames_to=to_datetime(moment),
        prompt="Is it open?",
        text="yes",
        data={"yes": True, "probability": probability},
        alert=AlertRule(),
    )


def test_windows_of_an_alert_become_an_incident_with_its_pictures(
    results, redis_client, settings, timeline
):
    reported = []
    incidents = Incidents(timeline.database)
    frames = FrameStore(redis_client, Retention.of(settings))
    recording = recorder(
        redis_client,
        timeline,
        claim_after=0.0,
        incidents=incidents,
        frames=frames,
        on_incident=lambda: reported.append(1),
    )
    # given a recorder that was killed after it had read the first window
    results.publish(alert_result(redis_client, 0, 0.8), owner_id=None)
    redis_client.xreadgroup(GROUP, "dead", {redis_keys.RESULTS: ">"})
    assert recording.step() == 1
    assert reported == []
    # when the next one shows it too, and is delivered twice
    results.publish(alert_result(redis_client, 1, 0.9), owner_id=None)
    (entry,) = redis_client.xrevrange(redis_keys.RESULTS, count=1)
    redis_client.xadd(redis_keys.RESULTS, entry[1])
    assert recording.step() == 1
    # then one incident is open, with the picture of its window, and its rule is not in the timeline
    (incident,) = incidents.page().incidents
    assert (incident.state, incident.windows.yes) == ("open", 2)
    picture = incidents.picture(incident.id, "opened")
    assert picture is not None
    assert picture.jpeg == b"jpeg 1"
    assert reported == [1]
    assert timeline.get("req_1").data == {"yes": True, "probability": 0.9}
    assert timeline.get("req_1").alert is None


def test_old_results_are_deleted_between_two_batches(results, redis_client, timeline):
    # given a recorder that keeps results for a day, and streams without days of their own
    old = Result(
        request_id="old",
        kind="caption",
        stream_id="str_1",
        stream_name="yard",
        prompt="?",
        created_at=utc_now() - timedelta(days=2),
    )
    timeline.record([old])
    stopping = threading.Event()
    expiry = ResultExpiry(timeline.database, SystemClock(), days=1)
    recording = Recorder(redis_client, timeline, stopping=stopping, expiry=expiry)
    publish(results, "new")
    # when it runs
    thread = threading.Thread(target=recording.run)
    thread.start()
    try:
        deadline = time.monotonic() + 120
        while timeline.get("old") or not timeline.get("new"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        stopping.set()
        thread.join(60)
