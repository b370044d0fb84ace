"""No time of a camera is asked about twice, by any worker and however its frames are dated."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import redis

from streamer import redis_keys
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.frame import FrameRef
from streamer.domain.request import ClipRequest
from streamer.domain.stream import StreamCounters, StreamSpec
from streamer.queues.models import WATCHES
from streamer.redis_client.connections import Connections
from streamer.redis_client.outage import Outage
from tests.support.clocks import ManualClock
from tests.support.ingest_bench import Bench, watch
from tests.support.sentinel import SentinelSite
from tests.support.worker_process import WorkerProcess
from workers.ingest.clips import LiveClips
from workers.ingest.stream_watches import StreamWatches

Eventually = Callable[..., None]

START = 1_800_000_000.0
WINDOW = 4.0


class Worker:
    """What an ingest worker gathers the frames of a camera with: one a second, by a clock."""

    def __init__(self, bench: Bench, spec: StreamSpec, clock: ManualClock) -> None:
        settings = bench.settings.model_copy(update={"max_pending_clips": 100})
        self._spec, self._clock = spec, clock
        self.clips = LiveClips(
            bench.context.jobs, settings, StreamCounters(), Outage(), None, clock
        )
        self.clips.resume(spec)
        self.watches = StreamWatches(spec, self.clips.submit, resumed=True)

    def see(self, *pts: float, late: float = 0.0) -> None:
        """Add frames of stream times `pts`, each dated `late` seconds too late."""
        for at in pts:
            time = START + at + late
            self._clock.now = max(self._clock.now, time)
            frame = FrameRef(
                stream_id=self._spec.id,
                id=f"{round(time * 1000)}-0",
                time=time,
                pts=at,
                width=32,
                height=24,
                change=0.1,
            )
            self.watches.add(frame, 1.0)


@pytest.fixture
def camera(bench: Bench) -> StreamSpec:
    return bench.attach("rtsp://cam.invalid/x", watch(WINDOW), live=True, fps=1)


def windows(bench: Bench) -> list[tuple[float, float]]:
    """Return the windows that have been asked about, in seconds after `START`, oldest first."""
    found = sorted(bench.requests(WATCHES), key=lambda request: request.start)
    return [_window(request) for request in found]


def _window(request: ClipRequest) -> tuple[float, float]:
    start, end = request.start.timestamp(), request.end.timestamp()
    assert request.frames
    assert all(frame.time < end + 0.01 for frame in request.frames)
    return round(start - START, 2), round(end - START, 2)


def require_apart(asked: list[tuple[float, float]]) -> None:
    for before, after in pairwise(asked):
        assert before[1] <= after[0] + 0.01, asked
    assert all(start < end for start, end in asked)


def test_frames_that_were_dated_too_late_cost_no_overlap(bench: Bench, camera: StreamSpec) -> None:
    worker = Worker(bench, camera, ManualClock(START))
    # given a slow link: all frames of the first windows come, and are dated, 0.9 s too late
    worker.see(*range(8), late=0.9)
    late = windows(bench)
    # when it is as fast as before
    worker.see(*range(8, 20))
    # then the next window begins where the last one ended, and those after it are on time
    asked = windows(bench)
    require_apart(asked)
    first = asked[len(late)]
    assert first[0] == pytest.approx(late[-1][1], abs=0.01)
    assert len(asked) >= len(late) + 2
    assert asked[-1][1] - asked[-1][0] == pytest.approx(WINDOW, abs=0.01)
    # and the model has seen every frame once: also those that are dated before their window
    seen = sorted(frame.pts for request in bench.requests(WATCHES) for frame in request.frames)
    assert seen == list(range(len(seen)))


def test_a_window_dated_before_the_end_of_the_last_is_seen_and_moves_nothing_back(
    bench: Bench, camera: StreamSpec
) -> None:
    worker = Worker(bench, camera, ManualClock(START))

    def asked() -> list[tuple[float, float]]:
        found = bench.requests(WATCHES)
        return sorted((r.start.timestamp() - START, r.end.timestamp() - START) for r in found)

    # given a very slow link: frames come, and are dated, later than a window is long
    worker.see(*range(8), late=WINDOW + 5.0)
    late_end = max(end for _, end in asked())
    # when it is as fast as before
    worker.see(*range(8, 28))
    # then the model has seen every frame once
    seen = sorted(frame.pts for request in bench.requests(WATCHES) for frame in request.frames)
    assert seen == list(range(len(seen)))
    assert len(seen) >= 24
    # and the windows that reach beyond the late one begin where it ended
    beyond = [window for window in asked() if window[1] > late_end + 0.01]
    assert beyond[0][0] == pytest.approx(late_end, abs=0.01)
    require_apart(beyond)


def test_the_next_worker_continues_where_the_last_window_ended(
    bench: Bench, camera: StreamSpec
) -> None:
    # given a worker that was killed after it had asked about a window that has not ended yet
    clock = ManualClock(START)
    first = Worker(bench, camera, clock)
    first.see(*range(11))
    asked = windows(bench)
    end = asked[-1][1]
    # when another one sees the camera half a second later, by the second grid of its own
    second = Worker(bench, camera, clock)
    second.see(*(end - 0.7 + number for number in range(12)))
    # then nothing is asked about twice, and nothing of what the first one left is skipped
    after = windows(bench)
    assert all(
        request.start.timestamp() <= frame.time + 0.26  # a frame may be a little early
        for request in bench.requests(WATCHES)
        for frame in request.frames
    )
    require_apart(after)
    assert after[: len(asked)] == asked
    assert after[len(asked)][0] == pytest.approx(end, abs=0.01)


def test_a_window_that_was_asked_about_as_a_whole_is_left_out(
    bench: Bench, camera: StreamSpec
) -> None:
    clock = ManualClock(START)
    Worker(bench, camera, clock).see(*range(11))
    asked = windows(bench)
    # when a worker sees the same frames again
    Worker(bench, camera, clock).see(*range(9))
    assert windows(bench) == asked


def test_a_worker_that_was_frozen_for_longer_than_a_window(
    bench: Bench,
    loopback: LoopbackCamera,
    worker_process: Callable[..., WorkerProcess],
    eventually: Eventually,
) -> None:
    # given a worker that asks about windows of two seconds
    spec = bench.attach(loopback.url, watch(2.0), live=True, fps=2)
    bench.context.jobs.start_ingest(spec.id)
    worker = worker_process("ingest", STREAMER_LEASE="60", STREAMER_MAX_PENDING_CLIPS="100")
    eventually(lambda: len(windows(bench)) >= 3)
    # when it is frozen for six seconds, and finds in its sockets what the camera sent meanwhile
    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(6.0)
    asked = len(windows(bench))
    worker.process.send_signal(signal.SIGCONT)
    eventually(lambda: len(windows(bench)) >= asked + 6)
    # then the windows of that time are dated by when its frames were captured, and none is missing
    asked_about = windows(bench)
    require_apart(asked_about)
    assert all(after[0] - before[1] < 3.0 for before, after in pairwise(asked_about)), asked_about


def test_after_a_clock_was_set_back_windows_go_on_at_once(bench: Bench, camera: StreamSpec) -> None:
    clock = ManualClock(START)
    Worker(bench, camera, clock).see(*range(100, 112))
    asked = len(windows(bench))
    # when the clock was set back by 100 s, and another worker takes over
    clock.now = START
    Worker(bench, camera, clock).see(*range(12))
    assert len(windows(bench)) >= asked + 2


def test_a_watch_that_is_gone_is_forgotten(
    bench: Bench, redis_client: redis.Redis, camera: StreamSpec
) -> None:
    clock = ManualClock(START)
    worker = Worker(bench, camera, clock)
    worker.see(*range(8))
    (gone,) = camera.watches
    edited = camera.model_copy(update={"watches": [watch(WINDOW)]})
    worker.watches.follow(edited)
    worker.see(*range(8, 20))
    assert worker.clips._asked_until.keys() == {edited.watches[0].id}
    # and what Redis noted of it ends by itself
    assert 0 < redis_client.ttl(redis_keys.asked_until(gone.id)) <= 3600


@pytest.fixture
def pair(tmp_path: Path, settings) -> Iterator[tuple[SentinelSite, Bench]]:
    """A primary with a replica and Sentinels, and an installation on them."""
    with SentinelSite(tmp_path) as site:
        behind = settings.model_copy(update={"redis_url": site.url})
        with Connections(behind) as connections:
            yield site, Bench(behind, connections)


@pytest.mark.slow
def test_a_failover_that_loses_windows_loses_their_ends_too(
    pair: tuple[SentinelSite, Bench], eventually: Eventually
) -> None:
    site, bench = pair
    camera = bench.attach("rtsp://cam.invalid/x", watch(WINDOW), live=True, fps=1)
    clock = ManualClock(START)
    worker = Worker(bench, camera, clock)
    worker.see(*range(11))
    kept = windows(bench)
    # given windows that the replica does not get
    old = site.primary()
    site.cut_replica()
    worker.see(*range(11, 19))
    lost = windows(bench)[len(kept) :]
    assert lost
    # when it takes the place of the primary
    site.kill_primary()
    eventually(lambda: site.primary() != old, message="no failover")

    def lost_them() -> bool:
        with contextlib.suppress(redis.exceptions.RedisError):
            return windows(bench) == kept
        return False

    eventually(lost_them)
    # then the worker that goes on asks about nothing twice, by what it remembers
    other = Worker(bench, camera, clock)
    worker.see(*range(19, 27))
    asked_since = windows(bench)[len(kept) :]
    assert asked_since
    require_apart(kept + lost + asked_since)
    # and another one, which would begin meanwhile, continues after the windows that were kept
    (ends,) = other.clips._asked_until.values()
    assert ends - START == pytest.approx(kept[-1][1], abs=0.01)
