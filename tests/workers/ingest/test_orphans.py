"""What is left in Redis of a stream that was detached, whatever had happened to its workers."""

import threading
from collections.abc import Iterator

import pytest
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from streamer import redis_keys
from streamer.domain.stream import StreamSpec
from streamer.domain.timestamp import to_datetime
from streamer.queues.jobs import INGEST, INGEST_JOB
from tests.support.ingest_bench import Bench
from tests.support.queues import take_next
from workers import context
from workers.ingest.job import run_stream
from workers.rq.executions import Executions
from workers.rq.job import Slot
from workers.rq.thread_worker import ThreadWorker

LEASE = 60


class Stage:
    """A stream, and an ingest worker that gets as far with its job as a test wants."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.redis = bench.context.connections.main
        self.spec: StreamSpec = bench.attach("rtsp://127.0.0.1:1/x", live=True)
        self.queue = Queue(INGEST, connection=self.redis, serializer=JSONSerializer)
        self.executions = Executions(self.redis, LEASE)
        self.slot: Slot | None = None

    def start(self) -> None:
        self.bench.context.jobs.start_ingest(self.spec.id)

    def take(self) -> None:
        self.slot = take_next(self.executions, self.queue, to_datetime(0))

    def kill(self) -> None:
        """Let the worker be dead for a lease."""
        assert self.slot is not None
        registry = self.queue.started_job_registry
        self.redis.zadd(registry.key, {self.slot.execution.composite_key: 1}, xx=True)
        self.redis.delete(self.slot.execution.key)

    def give_back(self) -> None:
        assert self.slot is not None
        self.executions.give_back(self.slot)

    def fail(self) -> None:
        assert self.slot is not None
        self.executions.fail(self.slot, "trace", to_datetime(1))

    def clean_like_rq(self) -> None:
        self.queue.started_job_registry.cleanup()

    def expire_by_a_wrong_clock(self) -> None:
        """Look at the job as a program does whose clock is a day ahead."""
        job = Job.fetch(redis_keys.stream_job(self.spec.id), self.redis, JSONSerializer)
        self.redis.zremrangebyscore(job.execution_registry.key, "-inf", "+inf")

    def detach(self) -> None:
        self.bench.registry.delete(self.spec.id)
        self.bench.context.jobs.stop_ingest(self.spec.id)


@pytest.fixture
def stage(bench: Bench) -> Iterator[Stage]:
    context.install(bench.context)
    yield Stage(bench)
    context.install(None)


@pytest.mark.parametrize(
    "history",
    [
        "start, detach",
        "start, take, detach, kill",
        "start, take, kill, detach",
        "start, take, kill, detach, clean_like_rq",
        "start, take, kill, clean_like_rq, detach",
        "start, take, kill, clean_like_rq, take, detach, kill",
        "start, take, give_back, detach",
        "start, take, detach, give_back",
        "start, take, fail, detach",
        "start, take, expire_by_a_wrong_clock, detach, kill",
        "start, take, fail, start, take, kill, detach",
    ],
)
def test_nothing_is_left_of_a_detached_stream(stage: Stage, history: str) -> None:
    # given a stream that was detached in the middle of this
    for step in history.split(", "):
        getattr(stage, step)()
    # when a worker runs for a while
    stopping = threading.Event()
    worker = ThreadWorker(
        [INGEST],
        stage.redis,
        slots=2,
        functions={INGEST_JOB: run_stream},
        stopping=stopping,
        lease=LEASE,
        on_failed=lambda *_: None,
        poll=0.05,
    )
    thread = threading.Thread(target=worker.work, kwargs={"burst": True})
    thread.start()
    thread.join(120)
    stopping.set()
    assert not thread.is_alive()
    # then no record and no entry of its job is left, except what Redis deletes by itself
    kept = {key for key in stage.redis.keys("rq:*") if stage.redis.ttl(key) == -1}
    assert kept <= {b"rq:queues"}
    assert not stage.redis.exists(f"rq:job:{redis_keys.stream_job(stage.spec.id)}")
