"""Cameras in an ingest slot: real RTSP servers that are killed, frozen and locked."""

import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
import redis

from streamer import redis_keys
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.sampling import Sampling
from streamer.domain.stream import StreamState
from streamer.errors import ErrorCode
from streamer.queues.models import WATCHES
from tests.support.cameras import GstCamera, SilentServer
from tests.support.clocks import SkippingClock
from tests.support.ingest_bench import PASSWORD, Bench, Flaky, watch
from workers.ingest.backoff import Backoff


def test_a_camera_is_sampled_and_asked_about(
    bench: Bench, loopback: LoopbackCamera, eventually: Callable[..., None]
) -> None:
    spec = bench.attach(loopback.url, watch(1.0), live=True, fps=5)
    with bench.run(spec) as slot:
        # two windows, one after the other, of frames at the rate that was asked for: a busy machine
        # may leave some out, and then comes another pair
        eventually(lambda: back_to_back(bench.requests(WATCHES)))
        status = bench.status(spec)
        slot.stop()
    assert slot.given_back
    first, second = bench.requests(WATCHES)
    assert (first.kind, first.watch_id) == (RequestKind.WATCH, spec.watches[0].id)
    for request in (first, second):
        # up to half of the first ones is cut off, so that cameras take turns
        length = (request.end - request.start).total_seconds()
        assert 0.499 <= length <= 1.001
        # a frame may fall into the next window
        assert abs(len(request.frames) - length / 0.2) <= 1
    assert first.data is None
    assert abs(second.end.timestamp() - time.time()) < 60
    assert status.state is StreamState.RUNNING
    assert status.error is None
    assert status.counters.reconnects == 0
    assert status.counters.duration is None
    # the status in Redis is up to a second old; the last one is written when the slot ends
    counters = bench.status(spec).counters
    assert counters.packets >= 35
    assert 0 < counters.decoded <= counters.packets
    assert counters.sampled == bench.frames.count(spec.id)
    assert counters.clips >= 2


def back_to_back(requests: list[ClipRequest]) -> bool:
    """Return whether there are two windows without a gap, with a frame each fifth of a second."""
    if len(requests) < 2:
        return False
    first, second = requests
    steps = np.diff([frame.pts for frame in (*first.frames, *second.frames)])
    return second.start == first.end and bool(np.all(np.abs(steps - 0.2) <= 0.05))


def test_live_clips_that_wait_too_long_are_dropped_oldest_first(
    bench: Bench, loopback: LoopbackCamera, eventually: Callable[..., None]
) -> None:
    spec = bench.attach(loopback.url, watch(0.4), live=True, fps=5)
    with bench.run(spec) as slot:
        eventually(lambda: bench.requests(WATCHES))
        oldest = bench.requests(WATCHES)[0]
        eventually(lambda: slot.run.counters.clips >= 5)
        waiting = bench.requests(WATCHES)
        slot.stop()
    assert len(waiting) <= bench.settings.max_pending_clips
    assert oldest.start not in [request.start for request in waiting]
    counters = bench.status(spec).counters
    assert counters.clips_dropped == counters.clips - len(bench.requests(WATCHES))


def test_detaching_a_camera_ends_its_slot_and_forgets_its_frames(
    bench: Bench, loopback: LoopbackCamera, eventually: Callable[..., None]
) -> None:
    spec = bench.attach(loopback.url, live=True)
    with bench.run(spec) as slot:
        eventually(lambda: bench.frames.count(spec.id))
        bench.registry.delete(spec.id)
        slot.join()
    assert slot.outcome == "returned"
    assert bench.frames.count(spec.id) == 0


def test_an_edited_stream_follows_without_reconnecting(
    bench: Bench, loopback: LoopbackCamera, eventually: Callable[..., None]
) -> None:
    spec = bench.attach(loopback.url, live=True, fps=1)
    with bench.run(spec) as slot:
        eventually(lambda: bench.status(spec).state is StreamState.RUNNING)
        bench.registry.update(spec.id, watches=[watch(0.5)], sampling=Sampling(fps=10))
        eventually(lambda: any(len(r.frames) >= 3 for r in bench.requests(WATCHES)))
        bench.registry.update(spec.id, watches=[])
        eventually(lambda: not len(slot.run.watches))
        slot.stop()
    assert bench.status(spec).counters.reconnects == 0


def test_a_lost_camera_is_reconnected(
    bench: Bench, units: Path, eventually: Callable[..., None]
) -> None:
    bench = bench.with_settings(reconnect_cap=0.2)
    with GstCamera(units) as camera:
        spec = bench.attach(camera.url, watch(60.0), live=True, fps=10)
        with bench.run(spec) as slot:
            eventually(lambda: bench.frames.count(spec.id) >= 5)
            # when the plug is pulled
            camera.kill()
            eventually(lambda: bench.status(spec).state is StreamState.RECONNECTING)
            error = bench.status(spec).error
            assert error is not None
            assert error.code is ErrorCode.STREAM_CONNECTION_FAILED
            # then what was seen is asked about before the minute is over
            eventually(lambda: bench.requests(WATCHES))
            (request,) = bench.requests(WATCHES)
            assert len(request.frames) >= 5
            length = request.end.timestamp() - request.start.timestamp()
            assert 0 <= length - (request.frames[-1].pts - request.frames[0].pts) + 0.001 < 0.2
            # when the camera is back
            before = bench.frames.newest(spec.id)[0]
            camera.start()
            eventually(lambda: bench.status(spec).state is StreamState.RUNNING)
            status = bench.status(spec)
            assert status.error is None
            assert status.counters.reconnects == 1
            eventually(lambda: bench.frames.newest(spec.id)[0].pts > before.pts)
            slot.stop()
    # then stream time has advanced with the wall clock, the time without a camera included
    after = bench.frames.newest(spec.id)[0]
    assert after.pts - before.pts == pytest.approx(after.time - before.time, abs=1.0)


def test_a_camera_that_freezes_is_noticed_and_comes_back(
    bench: Bench, units: Path, eventually: Callable[..., None]
) -> None:
    bench = bench.with_settings(reconnect_cap=0.2, read_timeout=0.5, open_timeout=5.0)
    with GstCamera(units) as camera:
        spec = bench.attach(camera.url, live=True, fps=10)
        with bench.run(spec) as slot:
            eventually(lambda: bench.status(spec).state is StreamState.RUNNING)
            camera.freeze()
            eventually(lambda: bench.status(spec).state is StreamState.RECONNECTING)
            error = bench.status(spec).error
            assert error is not None
            assert error.code is ErrorCode.STREAM_TIMEOUT
            camera.thaw()
            eventually(lambda: bench.status(spec).state is StreamState.RUNNING)
            slot.stop()


def test_a_wrong_password_is_reported_at_once_and_never_shown(
    bench: Bench,
    units: Path,
    eventually: Callable[..., None],
    redis_client: redis.Redis,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # given
    clock = SkippingClock()
    with GstCamera(units, user="admin", password=PASSWORD, digest=True) as camera:
        spec = bench.attach(f"rtsp://admin:hunter2@{camera.address}", live=True)
        with bench.run(spec, clock=clock) as slot:
            eventually(lambda: bench.status(spec).state is StreamState.RECONNECTING)
            status = bench.status(spec)
            assert status.error is not None
            assert status.error.code is ErrorCode.STREAM_AUTH_FAILED
            # then it is tried again at the cap only
            eventually(lambda: clock.slept >= bench.settings.reconnect_cap)
            # when the password is corrected, it takes effect without a restart
            full = f"rtsp://admin:{quote(PASSWORD, safe='')}@{camera.address}"
            redis_client.hset("streamer:secrets", spec.id, full)
            eventually(lambda: bench.status(spec).state is StreamState.RUNNING)
            assert bench.status(spec).error is None
            slot.stop()
    captured = "".join(capfd.readouterr())
    stored = status.model_dump_json() + spec.model_dump_json()
    for secret in ("hunter2", PASSWORD, quote(PASSWORD, safe="")):
        assert secret not in captured + stored


def test_a_camera_that_is_away_is_tried_again_for_ever_and_less_and_less_often(
    bench: Bench, eventually: Callable[..., None]
) -> None:
    clock = SkippingClock()
    began = clock.monotonic()
    delays: list[float] = []

    def highest(_low: float, high: float) -> float:
        delays.append(high)
        return high

    spec = bench.attach("rtsp://me:hunter2@127.0.0.1:1/x", live=True)
    with bench.run(spec, clock=clock, backoff=Backoff(60, draw=highest)) as slot:
        eventually(lambda: len(delays) >= 12)
        status = bench.status(spec)
        slot.stop()
    assert delays[:12] == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]
    assert clock.monotonic() - began >= sum(delays[:11])
    assert status.state is StreamState.RECONNECTING
    assert status.error is not None
    assert status.error.code is ErrorCode.STREAM_CONNECTION_FAILED
    assert "hunter2" not in status.model_dump_json()
    assert status.counters.reconnects == 0


def test_a_slot_that_connects_or_waits_stops_at_once(
    bench: Bench, eventually: Callable[..., None]
) -> None:
    with SilentServer() as server:
        url = f"rtsp://127.0.0.1:{server.port}/x"
        # given slots that would go on with that for ten minutes
        bench = bench.with_settings(open_timeout=600.0, read_timeout=600.0, reconnect_cap=600.0)
        connecting = bench.attach(url, live=True, name="connecting")
        waiting = bench.attach("rtsp://127.0.0.1:1/x", live=True, name="waiting")
        deleted = bench.attach(url, live=True, name="deleted")
        slow = Backoff(600, draw=lambda *_: 600.0)
        with (
            bench.run(connecting) as first,
            bench.run(waiting, backoff=slow) as second,
            bench.run(deleted) as third,
        ):
            eventually(lambda: server.accepted == 2)
            eventually(lambda: bench.status(waiting).state is StreamState.RECONNECTING)
            bench.registry.delete(deleted.id)
            first.stop()
            second.stop()
            third.join()
    assert first.given_back
    assert second.given_back
    assert third.outcome == "returned"


def test_redis_away_costs_a_camera_frames_and_nothing_else(
    bench: Bench, loopback: LoopbackCamera, eventually: Callable[..., None]
) -> None:
    spec = bench.attach(loopback.url, watch(0.2), live=True, fps=25)
    slot = bench.run(spec)
    slot.run.intake.store = Flaky(slot.run.intake.store, "put_all")
    slot.run.clips.jobs = Flaky(bench.context.jobs, "submit")
    with slot:
        eventually(lambda: slot.run.counters.dropped.redis_away >= 8)
        slot.stop()
    counters = bench.status(spec).counters
    assert counters.clips > len(bench.requests(WATCHES)) > 0
    assert counters.clips_dropped == counters.clips - len(bench.requests(WATCHES))
    assert counters.sampled == bench.frames.count(spec.id)
    assert counters.sampled >= 2 * (counters.dropped.redis_away - 1)
    assert counters.reconnects == 0


def test_a_camera_that_is_taken_over_is_not_asked_twice_about_the_same_time(
    bench: Bench,
    redis_client: redis.Redis,
    loopback: LoopbackCamera,
    eventually: Callable[..., None],
) -> None:
    # given a camera about which an earlier worker has asked, until a moment from now
    spec = bench.attach(loopback.url, watch(0.5), live=True, fps=5)
    asked_until = time.time() + 1.5
    redis_client.set(redis_keys.asked_until(spec.watches[0].id), asked_until)

    # when another worker takes it over
    with bench.run(spec):
        eventually(lambda: bench.requests(WATCHES))

    # then its first window does not begin before
    (first, *_) = bench.requests(WATCHES)
    assert first.start.timestamp() >= asked_until - 0.001


def test_a_camera_whose_clock_was_set_back_is_asked_about_at_once(
    bench: Bench,
    redis_client: redis.Redis,
    loopback: LoopbackCamera,
    eventually: Callable[..., None],
) -> None:
    spec = bench.attach(loopback.url, watch(0.5), live=True, fps=5)
    redis_client.set(redis_keys.asked_until(spec.watches[0].id), time.time() + 3600)
    with bench.run(spec):
        eventually(lambda: bench.requests(WATCHES))
