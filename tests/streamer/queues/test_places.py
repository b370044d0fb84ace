"""Live clips that wait keep their place in the queue, whatever content they have."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.queues.jobs import CLIP_JOB, Jobs, read_request
from streamer.queues.models import WATCHES
from streamer.queues.results import Results
from streamer.settings import Settings
from workers.rq.thread_worker import ThreadWorker

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
Eventually = Callable[..., None]


def clip(watch: str, second: float, window: float = 1.0) -> ClipRequest:
    """Return the request for the window of a watch that ends at a second."""
    end = BEGIN + timedelta(seconds=second)
    return ClipRequest(
        kind=RequestKind.WATCH,
        stream_id=f"str_{watch}",
        stream_name=watch,
        watch_id=f"wch_{watch}",
        start=end - timedelta(seconds=window),
        end=end,
        created_at=end,
        prompt="What?",
        frames=[],
    )


def second_of(request: ClipRequest) -> float:
    return (request.end - BEGIN).total_seconds()


@pytest.fixture
def jobs(redis_client: redis.Redis, settings: Settings) -> Jobs:
    return Jobs(redis_client, settings)


@pytest.fixture
def waiting(redis_client: redis.Redis) -> Queue:
    return Queue(WATCHES, connection=redis_client, serializer=JSONSerializer)


def shown(waiting: Queue) -> list[tuple[str, float]]:
    """Return what waits in a queue: the watch and the end of the window."""
    requests = [read_request(job) for job in waiting.jobs]
    return [(r.stream_name, second_of(r)) for r in requests if r is not None]


def test_a_new_clip_takes_over_the_place_of_the_one_that_is_dropped(
    jobs: Jobs, waiting: Queue
) -> None:
    # given clips of three cameras that wait, two of each
    for second in (1, 2):
        for watch in ("yard", "door", "hall"):
            assert jobs.submit_newest(clip(watch, second), 2) == 0
    places = waiting.job_ids
    # when one of them has two more
    assert jobs.submit_newest(clip("door", 3), 2) == 1
    assert jobs.submit_newest(clip("door", 4), 2) == 1
    # then they wait in the same places, in the order of time
    assert shown(waiting) == [
        ("yard", 1),
        ("door", 3),
        ("hall", 1),
        ("yard", 2),
        ("door", 4),
        ("hall", 2),
    ]
    assert waiting.job_ids == places
    assert jobs.in_flight("wch_door") == 2
    # and each is a whole job under its own id
    for job in waiting.jobs:
        request = read_request(job)
        assert request is not None
        assert (request.id, job.origin, job.get_status()) == (job.id, WATCHES, "queued")


def test_a_clip_that_a_worker_is_taking_keeps_its_content(
    jobs: Jobs, waiting: Queue, redis_client: redis.Redis
) -> None:
    # given a clip that a worker has taken from the queue, but not yet read
    first = clip("door", 1)
    jobs.submit(first)
    redis_client.lmove(waiting.key, waiting.intermediate_queue_key, "LEFT", "RIGHT")
    # when the next comes, then it waits beside it
    assert jobs.submit_newest(clip("door", 2), 1) == 0
    assert shown(waiting) == [("door", 2)]
    taken = Job.fetch(first.id, redis_client, JSONSerializer)
    assert read_request(taken) == first
    # and is replaced itself by the one after
    assert jobs.submit_newest(clip("door", 3), 1) == 1
    assert shown(waiting) == [("door", 3)]


def test_taking_over_a_place_costs_the_same_in_a_long_queue(
    jobs: Jobs, waiting: Queue, redis_client: redis.Redis
) -> None:
    # given a clip of a camera far back in the queue
    redis_client.rpush(waiting.key, *(f"other-{number}" for number in range(5000)))
    jobs.submit(clip("door", 1))
    redis_client.config_resetstat()
    # when another one takes its place
    assert jobs.submit_newest(clip("door", 2), 1) == 1
    # then no command was run that walks through the queue: LPOS looks at what workers are taking
    ran: Any = redis_client.info("commandstats")
    assert not {"cmdstat_lrem", "cmdstat_lset", "cmdstat_linsert", "cmdstat_lrange"} & set(ran)
    assert ran["cmdstat_lpos"]["calls"] == 2
    assert waiting.count == 5001


class Site:
    """Cameras with one watch each, and a worker that answers one clip on request."""

    def __init__(self, client: redis.Redis, settings: Settings, eventually: Eventually) -> None:
        self._jobs = Jobs(client, settings)
        self._results = Results(client, settings)
        self._eventually = eventually
        self._go = threading.Semaphore(0)
        self._taken = 0
        self.answered: list[ClipRequest] = []
        self._done = 0
        self.stopping = threading.Event()
        worker = ThreadWorker(
            [WATCHES],
            client,
            slots=1,
            functions={CLIP_JOB: self._answer},
            stopping=self.stopping,
            lease=60.0,
            on_failed=lambda *_: None,
            poll=0.1,
        )
        self._thread = threading.Thread(target=worker.work, daemon=True)
        self._thread.start()

    def _answer(self, request: dict[str, Any]) -> None:
        asked = ClipRequest.model_validate(request)
        self._taken += 1
        self._go.acquire(timeout=60)
        if not self.stopping.is_set():
            self._results.publish(Result.answering(asked, text="yes"), owner_id=asked.watch_id)
            self.answered.append(asked)
            self._done += 1

    def run(self, windows: dict[str, float], since: int, until: int) -> None:
        """Let the cameras have windows of so many seconds each, and the worker answer one clip a
        second."""
        for second in range(since, until):
            for number, (watch, window) in enumerate(windows.items()):
                if (second + number) % window == 0:
                    self._jobs.submit_newest(clip(watch, second, window), 2)
            if self._taken == self._done and not self._jobs.depths()[WATCHES]:
                continue
            self._eventually(lambda: self._taken > self._done)
            done = self._done + 1
            self._go.release()
            self._eventually(lambda done=done: self._done == done)
            if self._jobs.depths()[WATCHES]:
                self._eventually(lambda: self._taken > self._done)

    def stop(self) -> None:
        self.stopping.set()
        self._go.release()
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def site(redis_client: redis.Redis, settings: Settings, eventually: Eventually) -> Iterator[Site]:
    site = Site(redis_client, settings, eventually)
    yield site
    site.stop()


def cameras(count: int, window: float) -> dict[str, float]:
    return {f"cam{number}": window for number in range(count)}


@pytest.mark.parametrize(
    ("windows", "seconds"),
    [
        (cameras(10, 2.0), 120),
        ({"quick": 1.0, **cameras(20, 10.0)}, 120),
        pytest.param(cameras(50, 10.0), 300, marks=pytest.mark.slow),
        pytest.param({"quick": 1.0, **cameras(50, 10.0)}, 300, marks=pytest.mark.slow),
    ],
    ids=[
        "10 equal cameras",
        "a watch of 1 s beside 20 of 10 s",
        "50 equal cameras",
        "a watch of 1 s beside 50 of 10 s",
    ],
)
def test_no_camera_gets_less_than_half_of_the_share_of_another(
    site: Site, windows: dict[str, float], seconds: int
) -> None:
    # given cameras with several times as many windows as are answered
    site.run(windows, 1, 40)
    site.answered.clear()
    # when that goes on for minutes
    site.run(windows, 40, 40 + seconds)
    # then every camera has answers, none less than half as many as another
    answers = Counter(clip.stream_name for clip in site.answered)
    assert set(answers) == set(windows)
    assert min(answers.values()) >= 4
    assert max(answers.values()) <= 2 * min(answers.values()), answers
    # and each camera's come in the order of time
    for watch in windows:
        ends = [second_of(clip) for clip in site.answered if clip.stream_name == watch]
        assert ends == sorted(set(ends))
