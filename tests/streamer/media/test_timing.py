import math
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.media.timing import StreamTime, WallClock, to_seconds

LATER = math.inf
"""Arrival of the packet that completes a frame, where it does not matter."""


def observe(clock: WallClock, timestamp: float, arrival: float, *, epoch: int = 0) -> None:
    """Take a packet on a machine whose wall clock is never stepped."""
    clock.observe(timestamp, arrival, arrival - 900.0, epoch)


def test_the_wall_clock_of_a_frame_is_free_of_network_jitter() -> None:
    draw = random.Random(3)
    clock = WallClock()
    errors = []
    for n in range(500):
        captured = 1_700_000_000 + n / 25
        observe(clock, n / 25, captured + 0.02 + draw.expovariate(50))
        errors.append(clock.at(n / 25, LATER) - captured)
    assert all(0.015 < error < 0.06 for error in errors[50:])


def test_the_wall_clock_never_runs_back() -> None:
    draw = random.Random(4)
    clock = WallClock()
    before = 0.0
    for n in range(300):
        observe(clock, n / 25, 1000 + n / 25 + draw.uniform(0, 0.4))
        now = clock.at(n / 25, LATER)
        assert now >= before
        before = now


def test_packets_that_were_held_back_do_not_set_the_clock_late() -> None:
    # given: a second of frames that FFmpeg buffered while it opened the stream
    clock = WallClock()
    for n in range(25):
        observe(clock, n / 25, 1001.0)
        clock.at(n / 25, 1001.0)
    # when: frames arrive as they are captured again
    for n in range(25, 60):
        observe(clock, n / 25, 1000 + n / 25)
    # then
    assert clock.at(59 / 25, LATER) == pytest.approx(1000 + 59 / 25, abs=0.01)


@pytest.mark.parametrize("speed", [100.0, 4.0, 1.2])
def test_a_burst_after_a_stall_is_dated_by_its_timestamps(speed: float) -> None:
    # given a camera that is read in time
    clock = WallClock()
    for n in range(50):
        observe(clock, n / 25, 1000 + n / 25)
    # when nothing comes for 8 s, then everything, `speed` times as fast as it was captured
    arrival = 1002.0 + 8.0
    errors = []
    for n in range(50, 2000):
        arrival = max(1000 + n / 25, arrival + 1 / 25 / speed)
        observe(clock, n / 25, arrival)
        errors.append(clock.at(n / 25, LATER) - (1000 + n / 25))
    # then each frame is dated by when it was captured, but for what may be network jitter
    assert all(abs(error) < 0.3 for error in errors)
    assert errors[-1] == pytest.approx(0.0, abs=0.01)


@pytest.mark.parametrize("fps", [25.0, 0.5])
def test_a_camera_that_stood_still_is_dated_by_arrival_soon(fps: float) -> None:
    # given a camera whose timestamps go on where they were after it stood still for 8 s
    clock = WallClock()
    for n in range(50):
        observe(clock, n / fps, 1000 + n / fps)
    for n in range(50, 100):
        observe(clock, n / fps, 1008 + n / fps)
        error = clock.at(n / fps, LATER) - (1008 + n / fps)
        # then its frames are dated by their arrival, a second or a frame later at most
        assert n / fps - 50 / fps <= max(1.04, 1 / fps) or abs(error) < 0.05
        # and never after it
        assert error < 0.05


def test_a_link_that_falls_behind_is_dated_by_arrival() -> None:
    # given a link that carries a fifth less than the camera sends
    clock = WallClock()
    errors = []
    for n in range(500):
        arrival = 1000 + n / 25 * 1.2
        observe(clock, n / 25, arrival)
        errors.append(clock.at(n / 25, LATER) - arrival)
    # then frames are dated at most a little before they arrive
    assert all(-1.0 < error < 0.01 for error in errors)


def test_pictures_that_come_in_segments_keep_their_distance() -> None:
    # given segments of two seconds, each of which arrives when it is complete
    clock = WallClock(bursts=True)
    times = []
    for segment in range(30):
        arrival = 1000 + 2 * (segment + 1)
        stamps = [2 * segment + n / 25 for n in range(50)]
        for stamp in stamps:
            observe(clock, stamp, arrival)
        times += [clock.at(stamp, arrival) for stamp in stamps]
    # then each frame is dated by its position in its segment
    expected = [1000.04 + n / 25 for n in range(len(times))]
    assert times == pytest.approx(expected, abs=0.01)


def test_a_drifting_camera_is_followed() -> None:
    clock = WallClock()
    for n in range(25 * 3600):
        observe(clock, n / 25 * 0.9995, 1000 + n / 25)  # 1.8 s an hour
    assert clock.at(3600 * 0.9995, LATER) == pytest.approx(1000 + 3600, abs=0.1)


def test_the_clock_is_anchored_anew_after_a_jump() -> None:
    clock = WallClock()
    observe(clock, 5000.0, 1000.0)
    assert clock.at(5000.0, LATER) == 1000.0
    observe(clock, 3.0, 1001.0)
    assert clock.at(3.0, LATER) == 1001.0
    observe(clock, 90.0, 1002.0)
    assert clock.at(90.0, LATER) == 1002.0


def test_a_jump_of_the_sources_clock_anchors_the_wall_clock_again() -> None:
    # given a segmented source, whose lag is not corrected otherwise
    clock = WallClock(bursts=True)
    observe(clock, 10.0, 1000.0)
    # when its encoder restarts after 20 s, and its timestamps go on right after the last one
    observe(clock, 10.04, 1020.0, epoch=1)
    # then
    assert clock.at(10.04, LATER) == pytest.approx(1020.0)


def test_no_frame_is_dated_after_its_arrival() -> None:
    clock = WallClock()
    observe(clock, 0.0, 1000.0)
    assert clock.at(3600.0, 1000.5) == 1000.5


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_step_of_this_machines_clock_starts_a_new_epoch(step: float) -> None:
    clock = WallClock()
    for n in range(50):
        clock.observe(n / 25, 5000 + n / 25, n / 25)
        clock.at(n / 25, 5000 + n / 25)
    # when the clock is set, and pictures go on as before
    for n in range(50, 100):
        clock.observe(n / 25, 5000 + step + n / 25, n / 25)
        assert clock.at(n / 25, LATER) == pytest.approx(5000 + step + n / 25)
    # then
    assert clock.steps == 1


def test_without_timestamps_the_arrival_counts() -> None:
    clock = WallClock()
    assert clock.at(None, 1000.0) == 1000.0
    assert clock.at(None, 1000.5) == 1000.5


def test_the_first_picture_without_a_timestamp_goes_with_the_first_that_has_one() -> None:
    clock = WallClock()
    for n in range(10):
        observe(clock, n / 25, 1000.36)
    assert clock.at(None, 1000.36) == pytest.approx(1000)
    assert clock.at(1 / 25, 1000.36) == pytest.approx(1000.04)


def seconds(times: StreamTime, *stamps: tuple[float | None, float]) -> list[float]:
    return [round(times.place(stamp, arrival), 3) for stamp, arrival in stamps]


def test_stream_time_starts_at_nought() -> None:
    assert seconds(StreamTime(live=True), (5000.0, 1.0), (5000.04, 1.04)) == [0, 0.04]
    recording = StreamTime(live=False, origin=5.0)
    assert seconds(recording, (5.5, 0), (5.54, 0)) == [0.5, 0.54]


def test_a_frame_before_the_containers_start_is_the_start() -> None:
    times = StreamTime(live=False, origin=0.0)
    assert seconds(times, (-0.4, 0), (0.0, 0)) == [0, 0.4]


def test_stream_time_never_goes_back() -> None:
    times = StreamTime(live=True)
    assert seconds(times, (1.0, 1.0), (1.08, 1.1), (1.04, 1.1), (1.12, 1.2)) == [
        0,
        0.08,
        0.08,
        0.12,
    ]


def test_a_camera_that_was_still_for_a_minute_has_a_gap_and_no_jump() -> None:
    times = StreamTime(live=True)
    assert seconds(times, (1.0, 1.0), (61.0, 61.0)) == [0, 60]


def test_a_gap_in_a_recording_is_a_gap() -> None:
    times = StreamTime(live=False)
    assert seconds(times, (0.0, 0), (3600.0, 0)) == [0, 3600]


def test_frames_without_a_timestamp_get_a_likely_one() -> None:
    live = StreamTime(live=True)
    assert seconds(live, (None, 9.0), (None, 9.5), (None, 10.0)) == [0, 0.5, 1]
    recording = StreamTime(live=False, gap=0.1)
    assert seconds(recording, (None, 0), (None, 0), (None, 0)) == [0, 0.1, 0.2]


def test_the_first_frame_without_a_timestamp_is_not_in_the_place_of_the_second() -> None:
    time = StreamTime(live=True, gap=0.04)
    places = [time.place(None, 100.0), time.place(50.0, 100.04), time.place(50.04, 100.08)]
    assert places == pytest.approx([0.0, 0.04, 0.08])


@given(st.integers(-(2**63), 2**63 - 1), st.integers(1, 2**31 - 1), st.integers(1, 2**31 - 1))
def test_a_timestamp_in_seconds_is_the_float_nearest_to_it(stamp: int, over: int, under: int):
    time_base = Fraction(over, under)
    assert to_seconds(stamp, time_base) == float(stamp * time_base)
