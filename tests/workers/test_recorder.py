"""The recorder, in this process and as `python -m workers.recorder`."""

import os
import socket
import sqlite3
import threading

import pytest

from streamer import redis_keys
from streamer.domain import Result
from streamer.results import Results
from streamer.timeline import Timeline
from workers.recorder import GROUP, Recorder


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


def test_an_unreadable_entry_does_not_block_the_others(results, redis_client, timeline):
    redis_client.xadd(redis_keys.RESULTS, {"json": "nonsense"})
    publish(results, "a")
    assert recorder(redis_client, timeline).step() == 1
    assert pending(redis_client) == 0


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
    name = f"{socket.gethostname()}-{os.getpid()}"
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
    assert second.wait(timeout=5) == 0


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
    assert worker.wait(timeout=30) == 1
    assert expected in worker.output
    assert len(worker.output.strip().splitlines()) == 1
    assert "s3cret" not in worker.output
