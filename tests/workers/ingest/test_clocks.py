"""Clocks that go wrong while a camera runs: its own, and this machine's."""

import time
from collections.abc import Callable
from itertools import pairwise

import pytest

from streamer.clock import SystemClock
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.frame import FrameRef
from streamer.errors import ErrorCode
from streamer.queues.models import WATCHES
from tests.support.ingest_bench import Bench, watch
from tests.support.rtsp_proxy import RtspProxy

Eventually = Callable[..., None]


class SetClock(SystemClock):
    """The machine's clock, which the test may set."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def time(self) -> float:
        return time.time() + self.ahead


@pytest.mark.parametrize(
    "shifts",
    # each goes both forward and back
    [(3600.0, 0.0), pytest.param((-3600.0, 0.0), marks=pytest.mark.slow)],
)
def test_a_camera_that_sets_its_clock_and_back_is_captioned_throughout(
    bench: Bench,
    loopback: LoopbackCamera,
    line: RtspProxy,
    eventually: Eventually,
    shifts: tuple[float, float],
) -> None:
    spec = bench.attach(line.through(loopback.url), watch(1.0), live=True, fps=5)
    with bench.run(spec) as slot:
        eventually(lambda: bench.status(spec).counters.clips >= 1)
        for shift in shifts:
            line.faults.shift = shift
            clips = slot.run.counters.clips
            eventually(lambda clips=clips: slot.run.counters.clips >= clips + 3)
        slot.stop()

    # then no frame is dated after its arrival, and all of them are in order
    frames = bench.frames.newest(spec.id, 1000)
    assert frames[-1].time <= time.time()
    assert all(0 <= after.time - before.time < 5 for before, after in pairwise(frames))
    assert all(after.pts > before.pts for before, after in pairwise(frames))
    assert bench.status(spec).counters.dropped.total == 0


@pytest.mark.parametrize("ahead", [3600.0, -3600.0])
def test_setting_the_clock_of_this_machine_silences_no_camera(
    bench: Bench, loopback: LoopbackCamera, eventually: Eventually, ahead: float
) -> None:
    clock = SetClock()
    spec = bench.attach(loopback.url, watch(1.0), live=True, fps=5)
    with bench.run(spec, clock=clock) as slot:
        eventually(lambda: bench.requests(WATCHES))
        clock.ahead = ahead
        set_at = clock.time()

        def frames() -> list[FrameRef]:
            return bench.frames.between(spec.id, set_at - 60, clock.time() + 1)

        # then the frames since are found by their new dates, and asked about
        eventually(lambda: len(frames()) >= 10)
        eventually(lambda: any(each.frames[-1].epoch == 1 for each in bench.requests(WATCHES)))
        slot.stop()
    assert {frame.epoch for frame in frames()} == {1}
    # and no clip spans both
    for request in bench.requests(WATCHES):
        assert len({frame.epoch for frame in request.frames}) == 1
        assert request.end.timestamp() - request.start.timestamp() <= 1.5


@pytest.mark.parametrize("rate", [0.0, pytest.param(0.1, marks=pytest.mark.slow), 10.0])
def test_a_camera_whose_clock_runs_wrong_is_sampled_by_arrival(
    bench: Bench, loopback: LoopbackCamera, line: RtspProxy, eventually: Eventually, rate: float
) -> None:
    line.faults.rate = rate
    spec = bench.attach(line.through(loopback.url), watch(1.0), live=True, fps=5)
    with bench.run(spec) as slot:
        eventually(lambda: bench.status(spec).warnings)
        (warning,) = bench.status(spec).warnings
        # what it sampled until then has been counted when the next clip has
        warned = bench.status(spec).counters.clips
        eventually(lambda: bench.status(spec).counters.clips > warned)
        seen = bench.frames.newest(spec.id, 1)[-1].time

        def times() -> list[float]:
            return [each.time for each in bench.frames.newest(spec.id, 1000) if each.time > seen]

        # then it is sampled at the rate that was asked for, by the times of arrival
        eventually(lambda: len(times()) >= 10)
        slot.stop()
    assert warning.code is ErrorCode.STREAM_CLOCK_WRONG
    assert "dated by arrival" in warning.message
    assert len(times()) <= 5 * (times()[-1] - times()[0]) + 10
