"""Two real ingest workers; Redis or one of them is silent for a while: no stream is doubled.

A doubled stream is decoded, stored and asked about by two workers, for as long as both live.
"""

import os
import signal
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from streamer.domain.stream import StreamSpec, StreamState
from streamer.local.redis_server import EmbeddedServer
from streamer.queues.jobs import INGEST
from tests.support.ingest_bench import Bench
from tests.support.rtsp_proxy import RtspProxy
from tests.support.worker_process import WorkerProcess

pytestmark = pytest.mark.slow

LEASE = 4.0
STREAMS = 4
FPS = 5
MIN_INTERVAL = 0.45 / FPS  # half of what is asked for, and some milliseconds of rounding

Eventually = Callable[..., None]


class Pair:
    """Two workers that read some cameras through one line, which counts connections."""

    def __init__(
        self,
        bench: Bench,
        line: RtspProxy,
        url: str,
        start: Callable[..., WorkerProcess],
        eventually: Eventually,
    ) -> None:
        self.bench, self.line, self.eventually = bench, line, eventually
        self.specs: list[StreamSpec] = [
            bench.attach(line.through(url), live=True, fps=FPS, name=f"cam{number}")
            for number in range(STREAMS)
        ]
        for spec in self.specs:
            bench.context.jobs.start_ingest(spec.id)
        self.workers = [start("ingest", STREAMER_LEASE=str(LEASE)) for _ in range(2)]
        eventually(self.all_run)

    def all_run(self) -> bool:
        return all(self.bench.status(spec).state is StreamState.RUNNING for spec in self.specs)

    @property
    def executions(self) -> list[str]:
        redis = self.bench.context.connections.main
        registry = Queue(INGEST, connection=redis, serializer=JSONSerializer).started_job_registry
        return sorted(registry.get_job_ids(cleanup=False))

    def require_one_each(self) -> None:
        """Wait until every stream is read once. It stays so for several leases, except that the
        workers may move a stream to even out their load."""
        jobs = sorted(f"ingest-{spec.id}" for spec in self.specs)

        def one_each() -> bool:
            return self.executions == jobs and self.line.open == STREAMS and self.all_run()

        self.eventually(one_each)
        until = time.monotonic() + 3 * LEASE
        while time.monotonic() < until:
            running = self.executions
            assert len(running) == len(set(running))
            time.sleep(0.2)
        self.eventually(one_each)
        # and none is stored more densely than asked for
        for spec in self.specs:
            newest = self.bench.frames.newest(spec.id, 30)
            assert newest[-1].time - newest[0].time > 0.75 * 29 / FPS


@pytest.fixture
def pair(
    bench: Bench,
    line: RtspProxy,
    loopback: Any,
    worker_process: Callable[..., WorkerProcess],
    eventually: Eventually,
) -> Pair:
    return Pair(bench, line, loopback.url, worker_process, eventually)


@pytest.mark.parametrize("silence", [0.9 * LEASE, 1.5 * LEASE])
def test_no_stream_is_doubled_when_redis_is_silent(
    pair: Pair, valkey: EmbeddedServer, silence: float
) -> None:
    assert valkey.pid is not None
    for _ in range(2):
        os.kill(valkey.pid, signal.SIGSTOP)
        try:
            time.sleep(silence)
        finally:
            os.kill(valkey.pid, signal.SIGCONT)
        pair.require_one_each()


def test_no_stream_is_doubled_when_a_worker_is_frozen(pair: Pair) -> None:
    frozen, other = pair.workers
    frozen.process.send_signal(signal.SIGSTOP)
    try:
        # until the other has taken everything over
        pair.eventually(
            lambda: all(
                (pair.bench.status(spec).worker or "").split("-")[-2] == str(other.process.pid)
                for spec in pair.specs
            )
        )
    finally:
        frozen.process.send_signal(signal.SIGCONT)
    pair.require_one_each()
    assert frozen.process.poll() is None
    # and what its sockets had for it is not stored beside what the other one has
    for spec in pair.specs:
        assert shortest_interval(pair.bench, spec) > MIN_INTERVAL


@pytest.mark.parametrize("silence", [2.0, 6.0])
def test_a_worker_that_was_frozen_stores_no_burst(
    bench: Bench,
    loopback: Any,
    worker_process: Callable[..., WorkerProcess],
    eventually: Eventually,
    silence: float,
) -> None:
    # given a camera of 25 pictures a second, of which 5 are stored
    spec = bench.attach(loopback.url, live=True, fps=FPS)
    bench.context.jobs.start_ingest(spec.id)
    worker = worker_process("ingest", STREAMER_LEASE="60")
    eventually(lambda: bench.frames.count(spec.id) >= 10)
    # when its worker is frozen as a whole, so that pictures pile up in its sockets
    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(silence)
    stored = bench.frames.count(spec.id)
    worker.process.send_signal(signal.SIGCONT)
    eventually(lambda: bench.frames.count(spec.id) >= stored + 20)
    # then those that it finds there are thinned like all others
    assert shortest_interval(bench, spec) > MIN_INTERVAL


def shortest_interval(bench: Bench, spec: StreamSpec) -> float:
    """Return the seconds between the two stored frames that are closest together."""
    times = sorted(frame.time for frame in bench.frames.newest(spec.id, 1000))
    assert len(times) > 10
    return min(later - earlier for earlier, later in pairwise(times))
