"""Streams that are attached, but that no job runs: an ingest worker starts them again."""

from collections.abc import Callable
from typing import Any

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from streamer import redis_keys
from streamer.domain.stream import StreamSpec, StreamState
from streamer.domain.timestamp import to_datetime
from streamer.queues.jobs import INGEST
from tests.support.clocks import ManualClock
from tests.support.ingest_bench import Bench
from tests.support.queues import take_next
from workers.ingest.lost_streams import LostStreams
from workers.rq.executions import Executions
from workers.rq.job import Slot


class Stage:
    """A live stream whose job was started, and the sweep of an ingest worker."""

    def __init__(self, bench: Bench) -> None:
        self.redis = bench.context.connections.main
        self.jobs = bench.context.jobs
        self.queue = Queue(INGEST, connection=self.redis, serializer=JSONSerializer)
        self.executions = Executions(self.redis, 60)
        self.clock = ManualClock(1000.0)
        self.streams = LostStreams(bench.registry, self.jobs, self.clock)
        self.spec: StreamSpec = bench.attach("rtsp://127.0.0.1:1/x", live=True)
        self.job_id = redis_keys.stream_job(self.spec.id)

    def start(self) -> None:
        self.jobs.start_ingest(self.spec.id)

    def take(self) -> Slot:
        return take_next(self.executions, self.queue, to_datetime(0))


@pytest.fixture
def stage(bench: Bench) -> Stage:
    return Stage(bench)


def never_started(stage: Stage) -> None:
    """The program that attached it was killed in between."""


def lost_by_redis(stage: Stage) -> None:
    stage.start()
    stage.redis.delete(f"rq:job:{stage.job_id}", stage.queue.key)


def failed(stage: Stage) -> None:
    stage.start()
    stage.executions.fail(stage.take(), "trace", to_datetime(1))


def lost_from_the_registry(stage: Stage) -> None:
    stage.start()
    stage.take()
    stage.redis.delete(stage.queue.started_job_registry.key)


@pytest.mark.parametrize("lose", [never_started, lost_by_redis, failed, lost_from_the_registry])
def test_a_stream_that_no_job_runs_is_started_again(
    stage: Stage, lose: Callable[[Stage], None]
) -> None:
    lose(stage)
    for _ in range(3):
        stage.streams.sweep()
        stage.clock.now += 100
    assert stage.queue.get_job_ids() == [stage.job_id]
    # and it runs once
    slot = stage.take()
    stage.streams.sweep()
    assert stage.queue.get_job_ids() == []
    assert stage.executions.succeed(slot, to_datetime(1))


def test_a_stream_that_waits_runs_or_has_ended_is_left_alone(stage: Stage, bench: Bench) -> None:
    # given a stream that waits, and a recording that has ended
    stage.start()
    ended = bench.attach("/films/a.mp4", name="film")
    status = bench.status(ended)
    status.state = StreamState.ENDED
    bench.registry.save_status(ended.id, status)
    # when a worker looks while the stream waits, while one of an earlier release takes it, and
    # while it runs
    stage.streams.sweep()
    assert stage.queue.get_job_ids() == [stage.job_id]
    stage.clock.now += 100
    stage.redis.lmove(stage.queue.key, stage.queue.intermediate_queue_key)
    stage.streams.sweep()
    stage.clock.now += 100
    stage.executions.recover(stage.queue, stage.job_id)
    slot = stage.take()
    stage.streams.sweep()
    # then nothing is started twice
    assert stage.queue.get_job_ids() == []
    assert stage.executions.succeed(slot, to_datetime(1))
    assert not stage.redis.exists(f"rq:job:{redis_keys.stream_job(ended.id)}")


def test_it_looks_once_a_minute(stage: Stage) -> None:
    stage.streams.sweep()
    before = commands(stage)
    for _ in range(10):
        stage.streams.sweep()
        stage.clock.now += 5
    assert commands(stage) == before
    stage.clock.now += 60
    stage.streams.sweep()
    assert commands(stage) > before


def commands(stage: Stage) -> int:
    """Return how many commands Redis has run, but for those of this question, of clocks that are
    set by it and of connections."""
    ran: Any = stage.redis.info("commandstats")
    others = ("cmdstat_info", "cmdstat_time", "cmdstat_ping", "cmdstat_client")
    return sum(each["calls"] for name, each in ran.items() if not name.startswith(others))
