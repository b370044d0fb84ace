import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.media.sampler import FpsSampler


def kept(fps: float, times: list[float]) -> list[float]:
    sampler = FpsSampler(fps)
    return [time for time in times if sampler.keep(time)]


def test_the_first_frame_at_or_after_each_due_time_is_kept() -> None:
    times = [n / 25 for n in range(101)]
    assert kept(1, times) == [0, 1, 2, 3, 4]
    assert kept(2, times) == [0, 0.52, 1, 1.52, 2, 2.52, 3, 3.52, 4]
    assert kept(25, times) == times
    assert kept(60, times) == times


def test_a_rate_that_does_not_divide_the_sources_does_not_drift() -> None:
    times = [n * 1001 / 30000 for n in range(30 * 600)]
    frames = kept(4, times)
    assert len(frames) == pytest.approx(4 * times[-1], abs=1)
    assert all(0 <= time * 4 % 1 / 4 < 0.034 or time * 4 % 1 > 0.99 for time in frames)


def test_timestamps_rounded_to_milliseconds_are_in_time() -> None:
    times = [round(n / 30, 3) for n in range(90)]
    assert kept(10, times) == [round(n / 10, 3) for n in range(30)]


def test_jitter_loses_no_frame_at_the_sources_own_rate() -> None:
    draw = random.Random(7)
    times = [n / 25 + draw.uniform(-0.009, 0.009) for n in range(2500)]
    assert len(kept(25, times)) >= 2497


def test_a_variable_frame_rate_follows_the_clock() -> None:
    assert kept(1, [0, 0.1, 0.2, 1.7, 1.8, 2.0, 6.5, 6.6, 7.0, 7.1]) == [0, 1.7, 2.0, 6.5, 7.0]


def test_a_gap_is_not_made_up_for() -> None:
    times = [0.0, *(100 + n / 25 for n in range(26))]
    assert kept(5, times) == [0, 100, 100.2, 100.4, 100.6, 100.8, 101]


def test_a_step_back_starts_a_new_grid_instead_of_stalling() -> None:
    times = [1000 + n / 10 for n in range(21)] + [n / 10 for n in range(21)]
    assert kept(1, times) == [1000, 1001, 1002, 0, 1, 2]


def test_a_small_step_back_is_jitter() -> None:
    assert kept(1, [0, 0.5, 1.0, 0.9, 1.1, 2.0]) == [0, 1.0, 2.0]


@given(
    st.floats(0.1, 60),
    st.lists(st.floats(0.001, 5), min_size=2, max_size=200),
)
def test_never_more_than_asked_for(fps: float, steps: list[float]) -> None:
    times = [sum(steps[:n]) for n in range(len(steps))]
    frames = kept(fps, times)
    assert frames[0] == times[0]
    assert len(frames) <= (times[-1] - times[0] + 0.002) * fps + 2
