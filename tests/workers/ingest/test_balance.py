"""Ingest workers share the streams: real workers, a real queue, and hand-overs that are counted."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.sampling import Sampling
from streamer.domain.stream import StreamState
from streamer.queues.jobs import INGEST
from streamer.redis_client.connections import Connections
from streamer.service import Service
from streamer.settings import Settings
from tests.support.rtsp_proxy import RtspProxy
from workers import context
from workers.context import GiveBack, WorkerContext, place
from workers.ingest.balance import Balance
from workers.rq.thread_worker import ThreadWorker

Eventually = Callable[..., None]

INTERVAL = 0.1
JOB = "hold"


class Site:
    """Workers in threads of this process, whose jobs hold a stream until they are asked to stop."""

    def __init__(self, connections: Connections) -> None:
        self.redis = connections.main
        self.queue = Queue(INGEST, connection=self.redis, serializer=JSONSerializer)
        self.holders: dict[str, str] = {}
        self.moves: Counter[str] = Counter()
        self.doubled: list[str] = []
        self.resting: set[str] = set()
        self._lock = threading.Lock()
        self.workers: dict[str, tuple[ThreadWorker, threading.Event, threading.Thread]] = {}
        self.late: Counter[str] = Counter()

    def attach(self, *names: str, fixed: bool = False) -> None:
        for name in names:
            self.queue.enqueue_call(JOB, args=(name, fixed), job_id=name, timeout=-1)
            self.redis.lpush(f"streamer:wake:{INGEST}", 1)

    def start(self, name: str, slots: int = 32) -> None:
        stopping = threading.Event()
        worker = ThreadWorker(
            [INGEST],
            self.redis,
            slots=slots,
            functions={JOB: lambda *arguments: self._hold(name, stopping.is_set, *arguments)},
            stopping=stopping,
            lease=6,
            on_failed=lambda *_: pytest.fail("a job failed"),
            defer=lambda: balance.defers(),
        )
        balance = Balance(
            self.redis,
            worker.queues[0],
            worker,
            late=lambda: self.late[name],
            lease=6,
            interval=INTERVAL,
        )
        thread = threading.Thread(target=worker.work, daemon=True)
        self.workers[name] = (worker, stopping, thread)
        thread.start()

    def stop(self, name: str) -> None:
        _, stopping, thread = self.workers.pop(name)
        stopping.set()
        thread.join(120)
        assert not thread.is_alive()

    def close(self) -> None:
        for name in list(self.workers):
            self.stop(name)
        assert self.doubled == []

    def _hold(self, worker: str, ending: Callable[[], bool], name: str, fixed: bool) -> None:
        cancelled = context.cancel_check()
        if not fixed:
            place().allow_moves()
        with self._lock:
            if name in self.holders:
                self.doubled.append(name)
            self.holders[name] = worker
            self.moves[name] += 1
        rests = False
        while not (cancelled() or ending()):
            if name in self.resting and not rests:
                place().rest()
                rests = True
            elif rests and name not in self.resting:
                rests = not place().resume()
            time.sleep(0.05)
        with self._lock:
            del self.holders[name]
        raise GiveBack

    def shares(self) -> dict[str, int]:
        with self._lock:
            return dict(Counter(self.holders.values()))


@pytest.fixture
def site(settings: Settings, connections: Connections) -> Iterator[Site]:
    context.install(WorkerContext(settings=settings, connections=connections))
    site = Site(connections)
    yield site
    site.close()
    context.install(None)


def named(count: int) -> list[str]:
    return [f"s{number}" for number in range(count)]


def stays(site: Site, shares: dict[str, int], looks: int = 15) -> None:
    """Nothing moves within so many looks."""
    moves = site.moves.total()
    time.sleep(looks * INTERVAL)
    assert (site.shares(), site.moves.total()) == (shares, moves)


@pytest.mark.parametrize("workers", ["ab", "abc"])
def test_workers_that_start_together_share_the_streams(
    site: Site, eventually: Eventually, workers: str
) -> None:
    site.attach(*named(30))
    for name in workers:
        site.start(name)
    share = 30 // len(workers)
    eventually(lambda: site.shares() == dict.fromkeys(workers, share))
    stays(site, dict.fromkeys(workers, share))
    # and those that are attached later
    site.attach(*(f"late{number}" for number in range(3 * len(workers))))
    eventually(lambda: site.shares() == dict.fromkeys(workers, share + 3))


def test_a_worker_that_is_added_or_restarted_gets_its_share(
    site: Site, eventually: Eventually
) -> None:
    site.start("a")
    site.attach(*named(7))
    eventually(lambda: site.shares() == {"a": 7})
    site.start("b")
    eventually(lambda: site.shares() == {"a": 4, "b": 3})
    stays(site, {"a": 4, "b": 3})
    assert max(site.moves.values()) == 2, "no stream was moved twice"
    # a rolling restart: each ends, and starts again
    site.stop("a")
    eventually(lambda: site.shares() == {"b": 7})
    site.start("a")
    eventually(lambda: site.shares() == {"a": 3, "b": 4})
    site.stop("b")
    eventually(lambda: site.shares() == {"a": 7})
    site.start("b")
    eventually(lambda: site.shares() == {"a": 4, "b": 3})


def test_workers_are_filled_in_proportion_to_their_slots(
    site: Site, eventually: Eventually
) -> None:
    site.start("large", slots=6)
    site.attach(*named(6))
    eventually(lambda: site.shares() == {"large": 6})
    site.start("small", slots=2)
    eventually(lambda: site.shares() == {"large": 5, "small": 1})
    stays(site, {"large": 5, "small": 1})
    # and the full worker did not take back what it handed over, although it had room then
    assert site.moves.total() == 6 + 1


def test_recordings_stay_where_they_are(site: Site, eventually: Eventually) -> None:
    site.start("a")
    site.attach("f0", "f1", "f2", fixed=True)
    site.attach("s0", "s1")
    eventually(lambda: site.shares() == {"a": 5})
    site.start("b")
    eventually(lambda: site.shares() == {"a": 3, "b": 2})
    assert {name for name, worker in site.holders.items() if worker == "b"} == {"s0", "s1"}
    stays(site, {"a": 3, "b": 2})


def test_a_worker_that_drops_frames_is_helped_first_and_gets_nothing_back(
    site: Site, eventually: Eventually
) -> None:
    # given three workers with as many streams each
    for name in ("a", "b", "c"):
        site.start(name)
    site.attach(*named(9))
    eventually(lambda: site.shares() == {"a": 3, "b": 3, "c": 3})

    # when one drops frames while it has more than one stream
    def helped() -> bool:
        if site.shares().get("a", 0) <= 1:
            return True
        site.late["a"] += 1
        return False

    eventually(helped)
    # then the others take these over, and it gets none back although it has the fewest
    eventually(lambda: site.shares() == {"a": 1, "b": 4, "c": 4})
    stays(site, {"a": 1, "b": 4, "c": 4})
    site.attach("new0", "new1")
    eventually(lambda: site.shares() == {"a": 1, "b": 5, "c": 5})


def test_a_single_late_frame_moves_nothing(site: Site, eventually: Eventually) -> None:
    for name in ("a", "b"):
        site.start(name)
    site.attach(*named(4))
    eventually(lambda: site.shares() == {"a": 2, "b": 2})
    site.late["a"] += 5
    stays(site, {"a": 2, "b": 2})


def test_a_camera_that_is_back_and_finds_no_slot_goes_to_a_worker_that_has_one(
    site: Site, eventually: Eventually
) -> None:
    # given a full worker with a stream that waits for its camera
    site.start("a", slots=2)
    site.resting.add("dead")
    site.attach("dead", "s0", "s1")
    eventually(lambda: len(site.holders) == 3)
    site.resting.clear()
    eventually(lambda: site.redis.hget(f"streamer:worker:{worker_of(site)}", "slots_busy") == b"2")
    # when there is another one
    site.start("b", slots=2)
    # then it is that stream which goes there, and no running one is interrupted
    eventually(lambda: site.holders.get("dead") == "b")
    assert (site.moves["s0"], site.moves["s1"]) == (1, 1)


def worker_of(site: Site) -> str:
    return site.workers["a"][0].name


def test_a_worker_that_takes_nothing_is_not_waited_for(site: Site, eventually: Eventually) -> None:
    # given an empty worker that reports and never takes
    site.redis.sadd(f"rq:workers:{INGEST}", "rq:worker:stuck")
    report: list[str | int] = [
        "slots",
        32,
        "slots_busy",
        0,
        "streams",
        0,
        "movable",
        0,
        "strained",
        0,
    ]
    site.redis.hset("streamer:worker:stuck", items=report)
    site.start("a")
    site.attach(*named(3))
    eventually(lambda: site.shares() == {"a": 3})


def test_a_second_ingest_worker_takes_cameras_over_without_decoding_any_twice(
    settings: Settings,
    loopback: LoopbackCamera,
    line: RtspProxy,
    worker_process: Callable[..., Any],
    eventually: Eventually,
) -> None:
    with Service(settings) as client:
        worker_process("ingest")
        for number in range(4):
            client.attach(
                line.through(loopback.url),
                f"cam{number}",
                sampling=Sampling(fps=5),
                watches=[],
                probe=False,
            )

        def workers() -> list[int]:
            found = client.streams()
            running = [stream for stream in found if stream.state is StreamState.RUNNING]
            return sorted(Counter(stream.worker for stream in running).values())

        eventually(lambda: workers() == [4])
        worker_process("ingest")
        eventually(lambda: workers() == [2, 2])
        sampled = {stream.id: stream.counters.sampled for stream in client.streams()}
        eventually(lambda: all(s.counters.sampled > sampled[s.id] + 3 for s in client.streams()))
        # then each is read once, and only the two that were handed over were opened again
        eventually(lambda: line.open == 4)
        assert line.accepted == 4 + 2
