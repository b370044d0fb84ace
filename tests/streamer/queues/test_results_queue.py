"""How long results stay in the results queue, and how unrecorded ones are reported."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient

from streamer import redis_keys
from streamer.api.app import create_app
from streamer.doctor import redis_server
from streamer.domain.result import Result
from streamer.queues.results import Results
from streamer.queues.results_queue import read_backlog
from streamer.service import Service
from streamer.settings import Settings
from streamer.timeline.results import Timeline
from workers.recorder.worker import Recorder

GROUP = redis_keys.RECORDER_GROUP


@pytest.fixture
def timeline(settings: Settings) -> Iterator[Timeline]:
    opened = Timeline(settings.timeline_url)
    yield opened
    opened.close()


def publish(results: Results, count: int, size: int = 0, prefix: str = "req") -> None:
    for number in range(count):
        answer = Result(
            request_id=f"{prefix}_{number}",
            kind="caption",
            stream_id="str_1",
            stream_name="yard",
            prompt="?",
            text="x" * size,
        )
        assert results.publish(answer, owner_id="wch_1")


def recorder_of(client: redis.Redis, timeline: Timeline) -> Recorder:
    recorder = Recorder(client, timeline, stopping=threading.Event())
    recorder.join()
    return recorder


def found_by_doctor(settings: Settings) -> dict[str, str]:
    return {each.name: each.message for each in redis_server.servers(settings)}


def metric(settings: Settings, name: str) -> float:
    client = Service(settings)
    with TestClient(create_app(client), base_url="http://127.0.0.1:8080") as api:
        lines = api.get("/metrics").text.splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith(f"{name} ")))


@pytest.mark.parametrize(
    ("count", "max_length"),
    [(1_400, 1_000), pytest.param(14_000, 10_000, marks=pytest.mark.slow)],
)
def test_results_wait_for_a_recorder_that_is_away(
    redis_client: redis.Redis,
    settings: Settings,
    timeline: Timeline,
    count: int,
    max_length: int,
) -> None:
    # given a recorder that was there once, and has gone
    settings.results_maxlen = max_length
    recorder_of(redis_client, timeline)
    # when more results are published than the queue keeps of recorded ones
    publish(Results(redis_client, settings), count)
    # then all wait, and are counted
    assert read_backlog(redis_client).results == count
    assert metric(settings, "streamer_results_unrecorded") == count
    # and a recorder records every one of them
    recorder = recorder_of(redis_client, timeline)
    recorded = 0
    while batch := recorder.step():
        recorded += batch
    assert recorded == count
    backlog = read_backlog(redis_client)
    assert (backlog.results, backlog.oldest, backlog.lost) == (0, None, 0)
    # and what is recorded is no longer kept beyond the length
    publish(Results(redis_client, settings), 200, prefix="more")
    assert redis_client.xlen(redis_keys.RESULTS) < count


def test_recorded_results_are_trimmed_to_the_length_whatever_is_left_unread(
    redis_client: redis.Redis, settings: Settings, timeline: Timeline
) -> None:
    # given a queue of 100 recorded results, and one that the recorder cannot read
    settings.results_maxlen = 100
    redis_client.xadd(redis_keys.RESULTS, {"json": "of a newer release"})
    recorder = recorder_of(redis_client, timeline)
    results = Results(redis_client, settings)
    for batch in range(10):
        publish(results, 100, prefix=f"req_{batch}")
        assert recorder.step() == 100
    # then the queue is about as long as it may be, and has the unread one still
    assert 100 <= redis_client.xlen(redis_keys.RESULTS) < 250
    oldest: Any = redis_client.xrange(redis_keys.RESULTS, count=1)
    assert oldest[0][1] == {b"json": b"of a newer release"}
    assert read_backlog(redis_client).results == 1
    assert read_backlog(redis_client).lost == 0


def test_beyond_its_bytes_the_oldest_are_given_up_and_counted(
    redis_client: redis.Redis, settings: Settings, timeline: Timeline
) -> None:
    # given a queue of at most a megabyte, and no recorder
    settings.results_max_bytes = 1 << 20
    results = Results(redis_client, settings)
    # when two megabytes of results are published
    publish(results, 400, size=5_000)
    # then the newest are there, and the others are counted
    used = redis_client.memory_usage(redis_keys.RESULTS)
    assert used is not None
    assert used < 1.1 * settings.results_max_bytes
    backlog = read_backlog(redis_client)
    assert backlog.lost > 0
    assert backlog.results == 400 - backlog.lost
    assert metric(settings, "streamer_results_lost_total") == backlog.lost
    received = found_by_doctor(settings)["lost results"]
    assert received.startswith(f"{backlog.lost} results were given up before they were recorded")
    newest: Any = redis_client.xrevrange(redis_keys.RESULTS, count=1)
    assert b'"req_399"' in newest[0][1][b"json"]
    # and a recorder records those that are left
    recorder = recorder_of(redis_client, timeline)
    recorded = 0
    while batch := recorder.step():
        recorded += batch
    assert recorded == 400 - backlog.lost


def test_recorded_results_give_way_by_bytes_without_a_loss(
    redis_client: redis.Redis, settings: Settings, timeline: Timeline
) -> None:
    # given a recorder that keeps up
    settings.results_max_bytes = 1 << 20
    results = Results(redis_client, settings)
    recorder = recorder_of(redis_client, timeline)
    # when many results of some size are published
    for batch in range(6):
        publish(results, 50, size=5_000, prefix=f"req_{batch}")
        while recorder.step():
            pass
    # then fewer than the length stay, and none is lost
    assert redis_client.xlen(redis_keys.RESULTS) < 250
    assert read_backlog(redis_client).lost == 0


def test_results_that_wait_for_long_are_told(
    redis_client: redis.Redis, settings: Settings, timeline: Timeline
) -> None:
    # given a result of two minutes ago, which a recorder took and never acknowledged
    recorder_of(redis_client, timeline)
    ago = round(1000 * (time.time() - 120))
    redis_client.xadd(redis_keys.RESULTS, {"json": "{}"}, id=f"{ago}-0")
    redis_client.xreadgroup(GROUP, "frozen", {redis_keys.RESULTS: ">"})
    publish(Results(redis_client, settings), 1)
    # then doctor and the metrics say so
    backlog = read_backlog(redis_client)
    assert (backlog.results, backlog.oldest) == (2, ago / 1000)
    assert found_by_doctor(settings)["results"].startswith("2 results are not in the timeline yet")
    assert metric(settings, "streamer_results_unrecorded_age_seconds") >= 120


def test_a_queue_without_results_has_no_backlog(redis_client: redis.Redis) -> None:
    backlog = read_backlog(redis_client)
    assert (backlog.results, backlog.oldest, backlog.lost) == (0, None, 0)
