"""Machines whose clocks are wrong: ingest, the host of the API, a worker; forward and back."""

import threading
from collections.abc import Callable, Iterator

import pytest
from rq import Queue, Retry
from rq.job import Job, JobStatus
from rq.serializers import JSONSerializer

from streamer import clock
from streamer.clock import SystemClock
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.stream import StreamState
from streamer.queues.models import QUERIES
from streamer.redis_client.connections import Connections
from streamer.service import Service
from streamer.settings import Settings
from tests.support.clocks import ShiftedClock
from tests.support.ingest_bench import Bench, watch
from workers import context
from workers.context import stop_check
from workers.rq.thread_worker import ThreadWorker

SHIFTS = [
    3600.0,
    -3600.0,
    pytest.param(60.0, marks=pytest.mark.slow),
    pytest.param(-60.0, marks=pytest.mark.slow),
]


class Hosts:
    """An ingest worker and the host of the API, each with a clock of its own."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.settings = settings
        self._monkeypatch = monkeypatch

    def ingest(self, shift: float) -> Bench:
        """Return a bench on a machine whose clock is `shift` seconds ahead."""
        connections = Connections(self.settings, machine=ShiftedClock(shift))
        return Bench(self.settings, connections)

    def client(self, shift: float) -> Service:
        """Return a client on a machine whose clock is `shift` seconds ahead."""

        def connect(settings: Settings, patient: bool) -> Connections:
            return Connections(settings, patient=patient, machine=ShiftedClock(shift))

        self._monkeypatch.setattr("streamer.service.Connections", connect)
        return Service(self.settings)


@pytest.fixture
def hosts(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    yield Hosts(settings, monkeypatch)
    clock.share(SystemClock())


@pytest.mark.parametrize("place", ["ingest", "client"])
@pytest.mark.parametrize("shift", SHIFTS)
def test_a_camera_is_shown_and_asked_about_as_if_all_clocks_were_right(
    hosts: Hosts,
    loopback: LoopbackCamera,
    eventually: Callable[..., None],
    place: str,
    shift: float,
) -> None:
    # given a camera that is read, and a machine whose clock is wrong
    bench = hosts.ingest(shift if place == "ingest" else 0.0)
    spec = bench.attach(loopback.url, watch(1.0), live=True, fps=5)
    with bench.run(spec), hosts.client(shift if place == "client" else 0.0) as client:
        eventually(lambda: bench.frames.count(spec.id) >= 4)
        # then its frames are dated by the clock of Redis
        seconds, microseconds = bench.context.connections.main.time()
        newest = bench.frames.newest(spec.id)[0]
        assert -20 < seconds + microseconds / 1e6 - newest.time < 20
        # its state is shown
        eventually(lambda: client.stream(spec.name).last_frame_age is not None)
        stream = client.stream(spec.name)
        assert (stream.state, stream.error) == (StreamState.RUNNING, None)
        assert stream.last_frame_age is not None
        assert stream.last_frame_age < 20
        # it can be asked about now, and about what was just seen
        query = client.ask("What is there?", stream=spec.name)
        assert not query.status.name.startswith("F")
        found = client.ask("What was there?", stream=spec.name, since="-30s")
        assert found.start is not None
        # and a time that is set by this host agrees with the frames
        assert abs(query.created_at.timestamp() - newest.time) < 20
    bench.context.connections.close()


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_job_of_a_living_worker_is_not_lost_whatever_the_clocks_are(
    hosts: Hosts,
    settings: Settings,
    eventually: Callable[..., None],
    shift: float,
) -> None:
    """Workers whose clocks differ took each other's jobs away: half of the long answers."""
    # given a worker that runs a job without retries, and one whose clock is wrong
    with Connections(settings) as right, Connections(settings, machine=ShiftedClock(shift)) as off:
        lost: list[str] = []
        release, started = threading.Event(), threading.Event()

        def hold(_: str) -> None:
            started.set()
            stopped = stop_check()
            while not release.wait(0.05):
                if stopped():
                    lost.append("cancelled")
                    return

        stopping = threading.Event()
        context.install(
            context.WorkerContext(settings=settings, connections=right, stopping=stopping)
        )
        workers = [
            ThreadWorker(
                [QUERIES],
                connections.main,
                slots=slots,
                functions={"hold": hold},
                stopping=stopping,
                lease=60.0,
                on_failed=lambda job, code, _: lost.append(f"{job.id} {code}"),
                poll=0.1,
                clock=connections.clock,
            )
            for connections, slots in ((right, 1), (off, 1))
        ]
        threads = [threading.Thread(target=worker.work) for worker in workers]
        queue = Queue(QUERIES, connection=right.main, serializer=JSONSerializer)
        queue.enqueue_call("hold", args=("x",), job_id="x", retry=Retry(max=1))
        for thread in threads:
            thread.start()
        started.wait(120)
        # when both have cleaned up many times
        beats = [worker._heartbeat for worker in workers]
        for _ in range(20):
            for worker in workers:
                assert worker._jobs.abandon(queue, worker._now()) == []
        assert all(not beat.ended.is_set() for beat in beats)
        # then the job goes on
        assert lost == []
        release.set()
        eventually(
            lambda: Job.fetch("x", right.main, JSONSerializer).get_status() is JobStatus.FINISHED
        )
        stopping.set()
        for thread in threads:
            thread.join(120)
        context.install(None)
        assert lost == []
        assert Job.fetch("x", right.main, JSONSerializer).retries_left == 1
