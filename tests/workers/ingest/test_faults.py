"""Faults of real cameras and networks in an ingest slot: what is reported, and what continues."""

import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.stream import StreamSpec, StreamState
from streamer.errors import ErrorCode
from tests.support.cameras import GstCamera, SilentServer, require_gst, write_units
from tests.support.clocks import SkippingClock
from tests.support.ingest_bench import PASSWORD, Bench
from tests.support.lossy_network import LossyNetwork
from tests.support.rtsp_proxy import RtspProxy
from tests.support.videos import write_video
from workers.ingest.backoff import Backoff

Eventually = Callable[..., None]


def is_running(bench: Bench, spec: StreamSpec) -> bool:
    return bench.status(spec).state is StreamState.RUNNING


def trouble(bench: Bench, spec: StreamSpec) -> ErrorCode | None:
    status = bench.status(spec)
    if status.state is not StreamState.RECONNECTING or status.error is None:
        return None
    assert status.error.message.endswith(".")
    return status.error.code


def readers() -> list[threading.Thread]:
    """Return the threads that hold a connection."""
    return [thread for thread in threading.enumerate() if thread.name == "packet-reader"]


# Refused


def test_a_missing_path_is_reported_at_once_and_tried_again_at_the_cap(
    bench: Bench, units: Path, eventually: Eventually
) -> None:
    clock = SkippingClock()
    with GstCamera(units) as camera:
        spec = bench.attach(f"rtsp://{camera.host}:{camera.port}/none", live=True)
        with bench.run(spec, clock=clock) as slot:
            eventually(lambda: trouble(bench, spec) is ErrorCode.STREAM_NOT_FOUND)
            # only a correct path ends it, after any number of attempts
            eventually(lambda: clock.slept >= 3 * bench.settings.reconnect_cap)
            assert trouble(bench, spec) is ErrorCode.STREAM_NOT_FOUND
            bench.registry.update(spec.id, secret_url=camera.url, url=camera.url)
            eventually(lambda: is_running(bench, spec))
            slot.stop()
    assert bench.status(spec).counters.reconnects == 0


def test_a_new_password_takes_effect_without_waiting_for_the_next_attempt(
    bench: Bench, units: Path, eventually: Eventually
) -> None:
    with GstCamera(units, user="admin", password=PASSWORD) as camera:
        spec = bench.attach(f"rtsp://admin:hunter2@{camera.address}", live=True)
        with bench.run(spec) as slot:  # in real time: it would wait a minute
            eventually(lambda: trouble(bench, spec) is ErrorCode.STREAM_AUTH_FAILED)
            full = f"rtsp://admin:{quote(PASSWORD, safe='')}@{camera.address}"
            bench.registry.update(spec.id, secret_url=full)
            eventually(lambda: is_running(bench, spec))
            assert bench.status(spec).error is None
            slot.stop()


def test_a_closed_port_is_reported_with_what_to_check(bench: Bench, eventually: Eventually) -> None:
    spec = bench.attach("rtsp://me:hunter2@127.0.0.1:1/x", live=True)
    with bench.run(spec) as slot:
        eventually(lambda: trouble(bench, spec) is ErrorCode.STREAM_CONNECTION_FAILED)
        error = bench.status(spec).error
        slot.stop()
    assert error is not None
    assert "check the address and the port" in error.message
    assert "hunter2" not in error.message


# Silent


def test_a_camera_that_never_ends_its_answer_piles_up_no_connections_and_delays_no_other(
    bench: Bench, loopback: LoopbackCamera, eventually: Eventually
) -> None:
    # given a camera whose bytes keep FFmpeg's own time-out from firing
    quick = bench.with_settings(open_timeout=0.4)
    with SilentServer(dribble=True) as server:
        mute = bench.attach(f"rtsp://127.0.0.1:{server.port}/x", live=True, name="mute")
        good = bench.attach(loopback.url, live=True, fps=10, name="good")
        with quick.run(mute, backoff=Backoff(0.05)) as hanging, bench.run(good) as running:
            eventually(lambda: trouble(bench, mute) is ErrorCode.STREAM_TIMEOUT)
            count = bench.frames.count(good.id)
            eventually(lambda: server.accepted >= 8)
            eventually(lambda: bench.frames.count(good.id) >= count + 5)
            assert hanging.run.open_connections <= 3
            assert bench.status(good).counters.reconnects == 0
            hanging.stop()
            running.stop()
        # then FFmpeg closed each connection, although the camera did not
        eventually(lambda: not readers())


# A bad connection


def test_lost_packets_cost_pictures_and_not_the_stream(
    bench: Bench, loopback: LoopbackCamera, line: RtspProxy, eventually: Eventually
) -> None:
    spec = bench.attach(line.through(loopback.url), live=True, fps=25)
    with bench.run(spec) as slot:
        eventually(lambda: is_running(bench, spec))
        line.faults.lose = 0.05
        eventually(lambda: line.faults.lost >= 5)
        count = bench.frames.count(spec.id)
        eventually(lambda: bench.frames.count(spec.id) >= count + 25)
        slot.stop()
    assert bench.status(spec).state is StreamState.RUNNING
    assert bench.status(spec).counters.reconnects == 0


def test_flipped_bits_cost_pictures_and_not_the_stream(
    bench: Bench, loopback: LoopbackCamera, line: RtspProxy, eventually: Eventually
) -> None:
    spec = bench.attach(line.through(loopback.url), live=True, fps=25)
    with bench.run(spec) as slot:
        eventually(lambda: is_running(bench, spec))
        line.faults.flip = 0.3
        eventually(lambda: line.faults.flipped >= 15)
        count = bench.frames.count(spec.id)
        eventually(lambda: bench.frames.count(spec.id) >= count + 10)
        eventually(lambda: slot.run.counters.dropped.decode_error >= 3)
        line.faults.flip = 0.0
        count = bench.frames.count(spec.id)
        eventually(lambda: bench.frames.count(spec.id) >= count + 30)
        slot.stop()
    assert bench.status(spec).state is StreamState.RUNNING
    assert bench.status(spec).counters.reconnects == 0


@pytest.mark.parametrize("hours", [1, -1])
def test_timestamps_that_jump_stall_nothing(
    bench: Bench,
    loopback: LoopbackCamera,
    line: RtspProxy,
    eventually: Eventually,
    hours: int,
) -> None:
    spec = bench.attach(line.through(loopback.url), live=True, fps=10)
    with bench.run(spec) as slot:
        eventually(lambda: bench.frames.count(spec.id) >= 5)
        # when the camera sets its clock
        line.faults.shift = 3600.0 * hours
        count = bench.frames.count(spec.id)
        eventually(lambda: bench.frames.count(spec.id) >= count + 15)
        slot.stop()
    assert bench.status(spec).counters.reconnects == 0
    # then stream time and wall clock went on together, without it
    frames = bench.frames.newest(spec.id, 100)
    assert all(0 < b.pts - a.pts < 5 for a, b in pairwise(frames))
    assert all(0 <= b.time - a.time < 5 for a, b in pairwise(frames))
    assert frames[-1].time - frames[0].time == pytest.approx(
        frames[-1].pts - frames[0].pts, abs=2.0
    )


def test_a_connection_that_goes_dead_and_comes_back(
    bench: Bench, loopback: LoopbackCamera, line: RtspProxy, eventually: Eventually
) -> None:
    bench = bench.with_settings(reconnect_cap=0.2, read_timeout=0.5, open_timeout=5.0)
    spec = bench.attach(line.through(loopback.url), live=True, fps=10)
    with bench.run(spec) as slot:
        eventually(lambda: is_running(bench, spec))
        line.faults.mute = True
        eventually(lambda: trouble(bench, spec) is ErrorCode.STREAM_TIMEOUT)
        line.faults.mute = False
        eventually(lambda: is_running(bench, spec))
        line.faults.refuse = True
        line.hang_up()
        eventually(lambda: trouble(bench, spec) is ErrorCode.STREAM_CONNECTION_FAILED)
        line.faults.refuse = False
        eventually(lambda: is_running(bench, spec))
        slot.stop()
    assert bench.status(spec).counters.reconnects >= 2


def test_a_burst_after_a_silence_is_stored_as_it_was_captured(
    bench: Bench, loopback: LoopbackCamera, line: RtspProxy, eventually: Eventually
) -> None:
    # given a camera of which five pictures a second are stored
    spec = bench.attach(line.through(loopback.url), live=True, fps=5)
    with bench.run(spec) as slot:
        eventually(lambda: bench.frames.count(spec.id) >= 5)
        # when what it sends is held up for four seconds
        line.faults.mute = True
        time.sleep(4.0)
        stored = bench.frames.count(spec.id)
        line.faults.mute = False
        eventually(lambda: bench.frames.count(spec.id) >= stored + 20)
        slot.stop()
    # then five pictures of each second are stored, and the times are those of their capture
    frames = sorted(bench.frames.newest(spec.id, 1000), key=lambda frame: frame.time)
    gaps = [later.time - earlier.time for earlier, later in pairwise(frames)]
    assert max(gaps) < 2.0
    assert min(gaps) > 0.45 / 5
    epochs = [frame.time - frame.pts for frame in frames]
    assert max(epochs) - min(epochs) < 2.0
    assert bench.status(spec).counters.reconnects == 0


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_network_that_loses_every_twentieth_packet(
    bench: Bench, units: Path, eventually: Eventually, transport: str
) -> None:
    with LossyNetwork(percent=5) as network, GstCamera(units, network=network) as camera:
        spec = bench.attach(camera.url, live=True, fps=25, transport=transport)
        with bench.run(spec) as slot:
            eventually(lambda: bench.frames.count(spec.id) >= 50)
            slot.stop()
        status = bench.status(spec)
    assert status.state is StreamState.RUNNING
    assert status.counters.packets >= 50


# Unusual cameras


def test_udp(bench: Bench, units: Path, eventually: Eventually) -> None:
    with GstCamera(units) as camera:
        spec = bench.attach(camera.url, live=True, fps=10, transport="udp")
        with bench.run(spec) as slot:
            eventually(lambda: bench.frames.count(spec.id) >= 10)
            slot.stop()
    assert bench.status(spec).counters.reconnects == 0


def test_hevc(bench: Bench, tmp_path: Path, eventually: Eventually) -> None:
    require_gst()
    write_video(tmp_path / "v.mp4", seconds=1, codec="libx265")
    with GstCamera(write_units([tmp_path / "v.mp4"], tmp_path / "v.units")) as camera:
        spec = bench.attach(camera.url, live=True, fps=10)
        with bench.run(spec) as slot:
            eventually(lambda: bench.frames.count(spec.id) >= 5)
            slot.stop()
    counters = bench.status(spec).counters
    assert (counters.codec, counters.width, counters.height) == ("hevc", 320, 240)


def test_a_size_that_changes_in_mid_stream(
    bench: Bench, tmp_path: Path, eventually: Eventually
) -> None:
    require_gst()
    write_video(tmp_path / "a.mp4", seconds=1)
    write_video(tmp_path / "b.mp4", seconds=1, width=480, height=272)
    units = write_units([tmp_path / "a.mp4", tmp_path / "b.mp4"], tmp_path / "v.units")
    with GstCamera(units) as camera:
        spec = bench.attach(camera.url, live=True, fps=5)
        with bench.run(spec) as slot:

            def sizes() -> set[tuple[int, int]]:
                return {(f.width, f.height) for f in bench.frames.newest(spec.id, 100)}

            eventually(lambda: sizes() == {(320, 240), (480, 272)})
            slot.stop()
    counters = bench.status(spec).counters
    assert counters.reconnects == 0
    assert (counters.width, counters.height) in {(320, 240), (480, 272)}
