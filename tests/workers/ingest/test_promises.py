"""Promised times: of back-off, of take-over, and of an end that nothing delays."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
import redis
from rq import Queue
from rq.job import Job

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.stream import StreamSpec, StreamState
from streamer.queues.jobs import INGEST
from tests.support.cameras import SilentServer
from tests.support.clocks import SkippingClock
from tests.support.ingest_bench import Bench
from tests.support.rtsp_proxy import RtspProxy
from workers.ingest.backoff import Backoff
from workers.rq.executions import AbandonedJob, Executions
from workers.rq.maintenance import Maintenance

Eventually = Callable[..., None]


def test_a_minute_of_frames_resets_the_back_off_and_less_does_not(
    bench: Bench, loopback: LoopbackCamera, line: RtspProxy, eventually: Eventually
) -> None:
    bench = bench.with_settings(
        lease=3600.0
    )  # it is the clock that is turned, not Redis that hangs
    clock, bounds = SkippingClock(), []

    def draw(_low: float, high: float) -> float:
        bounds.append(high)
        return 0.0

    def lost() -> float:
        """Return the bound of the wait after the next loss."""
        before, again = len(bounds), bench.status(spec).counters.reconnects + 1
        line.hang_up()
        eventually(lambda: bench.status(spec).counters.reconnects >= again)
        return bounds[before]

    line.faults.refuse = True
    spec = bench.attach(line.through(loopback.url), live=True)
    with bench.run(spec, clock=clock, backoff=Backoff(3600, draw=draw)) as slot:
        eventually(lambda: len(bounds) >= 4)
        line.faults.refuse = False
        eventually(lambda: bench.status(spec).state is StreamState.RUNNING)
        assert bounds[:3] == [1, 2, 4]
        assert lost() == min(3600, 2 * bounds[-2]) > 4
        clock.sleep(61)
        assert lost() == 1
        assert lost() == 2
        slot.stop()


def test_a_camera_that_hangs_in_open_does_not_delay_the_end_of_the_worker(
    bench: Bench,
    loopback: LoopbackCamera,
    worker_process: Callable[..., Any],
    eventually: Eventually,
) -> None:
    # given a camera whose bytes keep FFmpeg's own time-out from firing, and a healthy one
    with SilentServer(dribble=True) as server:
        mute = bench.attach(f"rtsp://127.0.0.1:{server.port}/x", live=True, name="mute")
        good = bench.attach(loopback.url, live=True, name="good")
        for spec in (mute, good):
            bench.context.jobs.start_ingest(spec.id)
        worker = worker_process("ingest")
        eventually(lambda: server.accepted and bench.frames.count(good.id))
        worker.terminate()
        assert worker.wait(20.0) == 0
    # then both are queued for the next worker
    assert bench.context.jobs.depths()[INGEST] == 2


@pytest.mark.slow
def test_streams_of_a_killed_worker_are_taken_over_within_twenty_seconds(
    bench: Bench,
    loopback: LoopbackCamera,
    worker_process: Callable[..., Any],
    eventually: Eventually,
) -> None:
    specs: list[StreamSpec] = []
    for number in range(3):
        specs.append(bench.attach(loopback.url, live=True, name=f"cam{number}"))
        bench.context.jobs.start_ingest(specs[-1].id)
    # given workers with the lease that they have by default: twenty seconds are enough to notice,
    # within a third of it, that it has ended
    assert bench.settings.lease * 4 / 3 < 20
    first = worker_process("ingest")
    eventually(lambda: all(bench.frames.count(spec.id) for spec in specs))
    worker_process("ingest")
    owner = bench.status(specs[0]).worker
    first.kill()
    eventually(lambda: all(bench.status(spec).worker != owner for spec in specs))
    eventually(lambda: all(bench.status(s).state is StreamState.RUNNING for s in specs))


def test_the_lock_of_a_worker_that_dies_while_taking_over_expires_in_time(
    redis_client: redis.Redis,
) -> None:
    queue = Queue(INGEST, connection=redis_client)
    left: list[int] = []

    class Watched(Executions):
        def abandon(self, queue: Queue, now: datetime) -> list[AbandonedJob] | None:
            left.append(redis_client.pttl(queue.registry_cleaning_key))
            return super().abandon(queue, now)

    Maintenance(
        redis_client,
        [queue],
        Watched(redis_client, 3),
        lease=3.0,
        idle=1.0,
        on_failed=lambda *_: None,
        job_class=Job,
    ).tick()
    assert 0 < left[0] <= 3000
    assert redis_client.pttl(queue.registry_cleaning_key) == -2  # it is given back
