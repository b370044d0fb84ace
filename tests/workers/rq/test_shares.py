"""How a ThreadWorker divides its slots among its queues, in this process."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer

from streamer import redis_keys
from streamer.queues.models import CLIP_QUEUES
from workers.rq.executions import Executions, Taken
from workers.rq.thread_worker import ThreadWorker

Eventually = Callable[..., None]


class Desk:
    """Queues, and a worker whose jobs note that they run and, if wanted, go on until released."""

    def __init__(self, client: redis.Redis) -> None:
        self._redis = client
        self.taken: list[str] = []
        self.hold = False
        self._released: dict[str, threading.Event] = {}
        self.stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def put(self, queue: str, number: int) -> None:
        """Let `number` more jobs wait in a queue."""
        waiting = Queue(queue, connection=self._redis, serializer=JSONSerializer)
        for _ in range(number):
            job_id = uuid4().hex  # with its arguments from the start: a worker may take it at once
            waiting.enqueue_call("job", args=(job_id, queue), job_id=job_id, timeout=60)

    def run(self, queues: Sequence[str] = CLIP_QUEUES, slots: int = 1, tier: int = 1) -> list[str]:
        """Run all that waits; return the queues of the jobs in the order in which they ran."""
        self.taken.clear()
        self._worker(queues, slots, tier).work(burst=True)
        return self.taken

    def start(self, slots: int, poll: float = 0.1) -> None:
        """Start a worker in a thread, whose jobs go on until they are released."""
        self.hold = True
        worker = self._worker(CLIP_QUEUES, slots, 1, poll)
        self._thread = threading.Thread(target=worker.work, daemon=True)
        self._thread.start()

    def release(self, queue: str) -> None:
        """Let the job of a queue end that has run longest."""
        running = (e for name, e in self._released.items() if name.startswith(queue))
        next(event for event in running if not event.is_set()).set()

    def stop(self) -> None:
        """Stop the worker, which puts its jobs back."""
        self.stopping.set()
        self.wake("queries")
        for event in self._released.values():
            event.set()
        if self._thread is not None:
            self._thread.join(60)
            assert not self._thread.is_alive()

    def wake(self, queue: str) -> None:
        """Wake a worker that waits for a queue, as what submits a request does."""
        self._redis.lpush(redis_keys.wake(queue), 1)

    def _worker(
        self, queues: Sequence[str], slots: int, tier: int, poll: float = 0.1
    ) -> ThreadWorker:
        return ThreadWorker(
            queues,
            self._redis,
            slots=slots,
            tier=tier,
            functions={"job": self._job},
            stopping=self.stopping,
            lease=60.0,
            poll=poll,
            on_failed=lambda *_: None,
        )

    def _job(self, job_id: str, queue: str) -> None:
        if self.hold:
            self._released[f"{queue} {job_id}"] = released = threading.Event()
        self.taken.append(queue)
        if self.hold:
            released.wait(60)


@pytest.fixture
def desk(redis_client: redis.Redis) -> Iterator[Desk]:
    desk = Desk(redis_client)
    yield desk
    desk.stop()


def test_each_kind_of_work_gets_its_share_and_queries_go_first(desk: Desk) -> None:
    # given more work of each kind than a worker can do
    for queue in CLIP_QUEUES:
        desk.put(queue, 16)
    # when it takes jobs one after the other
    taken = desk.run()
    # then half of them are queries, and what waits for a query waits for one other job at most
    assert Counter(taken[:16]) == {"queries": 8, "watches": 6, "files": 2}
    assert taken[:16:2] == ["queries"] * 8
    # and nothing waits behind what is not there
    assert Counter(taken) == dict.fromkeys(CLIP_QUEUES, 16)


def test_a_queue_that_was_found_empty_is_waited_for_and_not_asked_again(
    desk: Desk, eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []
    take = Executions.take

    def noted(
        self: Executions, queues: Sequence[Queue], *args: Any, **options: Any
    ) -> Taken | bool:
        asked.append([queue.name for queue in queues])
        return take(self, queues, *args, **options)

    monkeypatch.setattr(Executions, "take", noted)
    # given a worker that looks for work by itself once an hour, and keeps a slot for queries
    desk.put("files", 3)
    desk.start(slots=2, poll=3600)
    eventually(lambda: desk.taken == ["files"])
    # when a query comes, then it is taken at once
    desk.put("queries", 1)
    desk.wake("queries")
    eventually(lambda: "queries" in desk.taken)
    # and in between the worker has not asked whether there is one
    assert asked == [list(CLIP_QUEUES), ["queries"]]
    # and where a slot is free again, the next recording is taken
    desk.release("files")
    eventually(lambda: desk.taken.count("files") == 2)


def test_without_queries_watches_leave_recordings_a_share(desk: Desk) -> None:
    desk.put("watches", 32)
    desk.put("files", 32)
    assert Counter(desk.run()[:32]) == {"watches": 28, "files": 4}


@pytest.mark.parametrize("queue", CLIP_QUEUES)
def test_a_kind_of_work_that_is_alone_gets_everything(desk: Desk, queue: str) -> None:
    desk.put(queue, 20)
    assert desk.run() == [queue] * 20


def test_queues_of_one_priority_take_turns(desk: Desk) -> None:
    names = [name for queue in CLIP_QUEUES for name in (queue, f"{queue}:large")]
    for name in names:
        desk.put(name, 8)
    taken = desk.run(names, tier=2)
    assert Counter(taken[:16]) == {
        "queries": 4,
        "queries:large": 4,
        "watches": 3,
        "watches:large": 3,
        "files": 1,
        "files:large": 1,
    }
    assert taken[:4] == ["queries", "watches", "queries:large", "watches:large"]


def test_queries_that_fill_all_slots_leave_watches_and_recordings_their_share(
    desk: Desk, eventually: Eventually
) -> None:
    # given a worker all of whose slots queries have, and more that wait
    desk.put("queries", 40)
    desk.start(slots=4)
    eventually(lambda: len(desk.taken) == 4)
    # when clips of cameras and of a recording come, and one job after the other ends
    desk.put("watches", 40)
    desk.put("files", 40)
    for ended in range(16):
        desk.release(desk.taken[ended])
        eventually(lambda ended=ended: len(desk.taken) == 5 + ended, message=str(desk.taken))
    # then each kind gets its share of the slots that become free
    assert Counter(desk.taken[4:]) == {"queries": 8, "watches": 6, "files": 2}


def test_a_slot_is_free_for_a_query_whatever_else_there_is_to_do(
    desk: Desk, eventually: Eventually
) -> None:
    # given a worker with as much bulk work as it takes
    desk.put("watches", 40)
    desk.start(slots=4)
    eventually(lambda: len(desk.taken) == 3)
    # when queries come, then one starts at once, and the next in its place
    desk.put("queries", 2)
    eventually(lambda: len(desk.taken) == 4)
    desk.release("queries")
    eventually(lambda: len(desk.taken) == 5)
    assert desk.taken == ["watches"] * 3 + ["queries"] * 2
