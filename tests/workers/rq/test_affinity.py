"""Clips of a stream go to the worker that answered the last ones, unless it is busy or away."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer

from streamer import redis_keys
from streamer.domain.kinds import RequestKind
from streamer.queues.affinity import MAX_PASSED
from streamer.queues.jobs import CLIP_JOB, Jobs
from streamer.queues.models import CLIP_QUEUES, queues_of_worker
from streamer.settings import Settings
from tests.support.clips import request
from workers.context import WorkerContext
from workers.rq.thread_worker import ThreadWorker

Eventually = Callable[..., None]

ASLEEP = 600.0
"""Seconds until a worker looks for work by itself: a test has failed by then."""


class Worker:
    """A worker in a thread whose jobs note their stream and go on until they are released."""

    def __init__(self, client: redis.Redis, slots: int, queues: list[str], poll: float) -> None:
        self.took: list[str] = []
        self.released = threading.Event()
        self.stopping = threading.Event()
        self._ready = threading.Event()
        self.worker = ThreadWorker(
            queues,
            client,
            slots=slots,
            functions={CLIP_JOB: self._job},
            stopping=self.stopping,
            lease=60.0,
            poll=poll,
            on_failed=lambda *_: None,
        )
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        self.worker.work(on_ready=self._ready.set)

    def _job(self, clip: dict[str, Any]) -> None:
        self.took.append(clip["stream_name"])
        self.released.wait(60)

    def start(self) -> "Worker":
        """Return once it waits for jobs."""
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def stop(self) -> None:
        """Let its jobs end, then stop it."""
        self.released.set()
        self.stopping.set()
        self.worker.connection.lpush(redis_keys.wake(self.worker.name), 1)
        if self._thread.ident is not None:
            self._thread.join(60)
            assert not self._thread.is_alive()


class Office:
    """Workers that share the queues, and clips for them."""

    def __init__(self, client: redis.Redis, settings: Settings, own: WorkerContext) -> None:
        self.redis, self._own = client, own
        self.jobs = Jobs(client, settings)
        self.workers: list[Worker] = []

    def worker(self, slots: int = 4, queues: list[str] | None = None, poll: float = 0.1) -> Worker:
        """Hire a worker, who looks for work by itself every `poll` seconds."""
        hired = Worker(self.redis, slots, queues or list(CLIP_QUEUES), poll)
        self.workers.append(hired)
        return hired

    def submit(self, stream: str, number: int = 1, **fields: Any) -> None:
        """Submit clips of a camera's watch."""
        for _ in range(number):
            clip = request(self._own, RequestKind.WATCH, refs=[], **fields)
            self.jobs.submit(
                clip.model_copy(update={"stream_id": f"str_{stream}", "stream_name": stream})
            )

    def know(self, stream: str, worker: Worker, model: str = "") -> None:
        """Let a worker be the one that answered the last clip of a stream."""
        self.redis.set(redis_keys.last_worker(f"str_{stream}") + model, worker.worker.name)

    def has_room(self, worker: Worker) -> bool:
        """Return whether clips are left to a worker."""
        return bool(self.redis.exists(redis_keys.has_room(worker.worker.name)))


@pytest.fixture
def office(redis_client: redis.Redis, settings: Settings, own: WorkerContext) -> Iterator[Office]:
    office = Office(redis_client, settings, own)
    yield office
    for worker in office.workers:
        worker.stop()


def test_an_idle_worker_gets_the_clips_of_the_streams_that_it_knows(
    office: Office, eventually: Eventually
) -> None:
    # given two workers that wait, and would not look for work by themselves for a long time
    one, two = (office.worker(slots=8, poll=ASLEEP).start() for _ in range(2))
    eventually(lambda: office.has_room(one) and office.has_room(two))
    office.know("door", one)
    office.know("yard", two)
    # when clips of their streams come, in turn, fewer than fill half of their slots; and none while
    # another one waits, which a worker that has just taken its own would take too
    for number in range(1, 4):
        for stream, worker in (("door", one), ("yard", two)):
            office.submit(stream)
            eventually(lambda w=worker, n=number: len(w.took) == n)
    # then each is woken for its own
    assert set(one.took) == {"door"}
    assert set(two.took) == {"yard"}


def test_the_worker_that_takes_a_clip_of_a_stream_gets_the_next(
    office: Office, eventually: Eventually
) -> None:
    one, two = (office.worker(slots=64, poll=ASLEEP).start() for _ in range(2))
    eventually(lambda: office.has_room(one) and office.has_room(two))
    for number in range(1, 9):
        office.submit("door")
        eventually(lambda n=number: len(one.took) + len(two.took) == n)
    assert sorted([len(one.took), len(two.took)]) == [0, 8]


@pytest.mark.parametrize("first", [1, 6], ids=["after the first", "all together"])
def test_a_busy_worker_leaves_its_streams_to_others_at_once(
    office: Office, eventually: Eventually, first: int
) -> None:
    # given a worker with two slots, one of them for queries, and more clips of its stream
    one = office.worker(slots=2, poll=ASLEEP).start()
    two = office.worker(slots=64, poll=ASLEEP).start()
    eventually(lambda: office.has_room(one) and office.has_room(two))
    office.know("door", one)
    office.submit("door", first)
    eventually(lambda: one.took)
    office.submit("door", 6 - first)
    # then the other takes the rest, though nothing but the first worker was woken for some of them
    eventually(lambda: len(one.took) + len(two.took) == 6)
    assert 1 <= len(one.took) <= 2
    # and is the one that knows the stream
    assert not office.has_room(one)
    last = office.redis.get(redis_keys.last_worker("str_door"))
    assert last == two.worker.name.encode()


def test_a_worker_that_is_gone_is_not_waited_for(office: Office, eventually: Eventually) -> None:
    # given a stream whose worker has ended
    gone = office.worker().start()
    office.know("door", gone)
    eventually(lambda: office.has_room(gone))
    gone.stop()
    assert not office.has_room(gone)
    one = office.worker(poll=ASLEEP).start()
    # when a clip of it comes, then another is woken for it
    office.submit("door")
    eventually(lambda: one.took == ["door"])


def alive(office: Office, worker: Worker) -> None:
    """Register a worker that takes nothing."""
    office.redis.hset(worker.worker.key, "birth", "now")


def run(worker: Worker, jobs: int) -> list[str]:
    """Run a worker whose jobs end at once until its queues are empty."""
    worker.released.set()
    worker.worker.work(burst=True)
    assert len(worker.took) == jobs
    return worker.took


def test_where_jobs_wait_a_worker_takes_those_first_that_it_knows(office: Office) -> None:
    # given a queue with clips of streams that two workers know, and a clip of a new stream
    one, two = office.worker(slots=1), office.worker(slots=1)
    alive(office, two)
    office.know("door", one)
    office.know("yard", two)
    for stream in ("yard", "door", "yard", "hall", "door"):
        office.submit(stream)
    # then it takes its own and the new one in their order, and those of the other at the end
    assert run(one, 5) == ["door", "hall", "door", "yard", "yard"]


def test_no_clip_is_passed_over_more_often_than_that(office: Office) -> None:
    one, two = office.worker(slots=1), office.worker(slots=1)
    alive(office, two)
    office.know("door", one)
    office.know("yard", two)
    office.submit("yard", 2)
    office.submit("door", 3 * MAX_PASSED)

    took = run(one, 2 + 3 * MAX_PASSED)

    # the second "yard" has waited at the head for as long as the first: it is the worker's own now
    assert took[: MAX_PASSED + 2] == ["door"] * MAX_PASSED + ["yard", "yard"]


def test_a_stream_has_a_worker_for_each_model(office: Office) -> None:
    # given a worker of one model, and a stream whose clips also go to another model's worker
    queues = queues_of_worker("acme/eye:7b", default=False)
    one, two = office.worker(slots=1, queues=queues), office.worker(slots=1)
    alive(office, two)
    office.know("door", two)
    office.know("yard", two, ":acme/eye:7b")
    for stream in ("yard", "door"):
        office.submit(stream, model="acme/eye:7b")
    assert run(one, 2) == ["door", "yard"]
    assert office.redis.get(redis_keys.last_worker("str_door")) == two.worker.name.encode()


def test_what_is_remembered_has_a_bound(office: Office) -> None:
    one = office.worker(slots=4)
    office.submit("door", 3)
    run(one, 3)
    assert office.redis.ttl(redis_keys.last_worker("str_door")) > 0
    assert not office.redis.exists(redis_keys.has_room(one.worker.name))
    # and an answered clip leaves no job
    assert list(office.redis.scan_iter("rq:job:*")) == []


def test_a_job_without_a_stream_is_taken_in_its_order(office: Office) -> None:
    one, two = office.worker(slots=1), office.worker(slots=1)
    alive(office, two)
    office.know("door", two)
    queue = Queue("watches", connection=office.redis, serializer=JSONSerializer)
    queue.enqueue_call(CLIP_JOB, args=({"stream_name": "of 0.1.0"},))
    office.submit("door")
    queue.enqueue_call(CLIP_JOB, args=({"stream_name": "lost"},), job_id="lost")
    office.redis.delete("rq:job:lost")  # its record is gone, as after a server's restart
    assert run(one, 2) == ["of 0.1.0", "door"]
