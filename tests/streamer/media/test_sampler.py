import random
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.domain.sampling import Sampling
from streamer.media.sampler import ChangeSampler, FpsSampler, KeyframeSampler, make_sampler
from tests.support.videos import numbered_picture


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


def picture(width: int = 320, height: int = 180, noise: float = 0.0, seed: int = 1) -> np.ndarray:
    """Return grey with camera noise, uint8 [height, width, 3]."""
    pixels = np.random.default_rng(seed).normal(96, noise, (height, width, 3))
    return pixels.clip(0, 255).astype(np.uint8)


def frame(pixels: np.ndarray, format: str = "yuv420p") -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format=format)


def test_each_mode_has_its_sampler() -> None:
    for mode, kind in (
        ("fps", FpsSampler),
        ("keyframes", KeyframeSampler),
        ("change", ChangeSampler),
    ):
        sampler = make_sampler(Sampling(mode=mode))
        assert isinstance(sampler, kind)
        assert sampler.keyframes == (mode == "keyframes")
        assert sampler.due < -1e9  # the first frame is always wanted


def test_key_frames_too_close_together_are_thinned() -> None:
    sampler = KeyframeSampler(1.0)
    times = [0, 0.48, 0.96, 1.44, 1.92, 2.4, 2.88, 3.36]
    assert [time for time in times if sampler.keep(time)] == [0, 1.44, 2.88]
    # when the clock steps back
    assert sampler.keep(0.1)
    sampler.resume(7.0)
    assert not sampler.keep(7.5)
    assert sampler.keep(8.0)


@pytest.mark.parametrize("format", ["yuv420p", "yuv444p", "rgb24", "yuv420p10le", "gray", "nv12"])
def test_a_small_thing_that_appears_is_a_change(format: str) -> None:
    sampler = ChangeSampler(0.1, 0.2, 60)
    empty, person = picture(noise=6), picture(noise=6, seed=2)
    person[80:120, 150:170] = 200  # 1.4 % of the picture
    assert sampler.keep(0.0, frame(empty, format))
    assert not sampler.keep(1.0, frame(picture(noise=6, seed=3), format))
    assert sampler.keep(2.0, frame(person, format))
    assert not sampler.keep(3.0, frame(person, format))
    assert sampler.keep(4.0, frame(empty, format))


@pytest.mark.parametrize(("width", "height"), [(160, 120), (161, 121), (640, 360)])
def test_a_cameras_noise_is_no_change(width: int, height: int) -> None:
    sampler = ChangeSampler(0.1, 0.2, 60)
    pictures = [frame(picture(width, height, noise=10, seed=n)) for n in range(6)]
    assert [sampler.keep(n / 2, image) for n, image in enumerate(pictures)] == [True] + [False] * 5


def test_changes_are_taken_now_and_then() -> None:
    sampler = ChangeSampler(0.1, 2.0, 5.0)
    black, white = frame(picture() * 0), frame(picture() * 0 + 255)
    # given a light that flickers: at most one every two seconds
    kept = [n / 10 for n in range(100) if sampler.keep(n / 10, white if n // 3 % 2 else black)]
    assert all(1.99 <= b - a <= 2.5 for a, b in pairwise(kept)), kept
    # when nothing changes: at least one every five
    kept = [n / 10 for n in range(100, 250) if sampler.keep(n / 10, black)]
    assert [round(b - a, 1) for a, b in pairwise(kept)] == [5.0] * (len(kept) - 1)
    assert len(kept) >= 3


def test_a_change_of_size_is_no_change_of_what_it_shows() -> None:
    sampler = ChangeSampler(0.1, 0.2, 60)
    assert sampler.keep(0.0, frame(numbered_picture(5, 320, 240)))
    assert not sampler.keep(1.0, frame(numbered_picture(5, 640, 480)))
    assert sampler.keep(2.0, frame(numbered_picture(1000, 640, 480)))


def test_what_was_seen_before_a_restart_is_not_known() -> None:
    sampler = ChangeSampler(0.1, 0.2, 60)
    same = frame(picture())
    sampler.resume(10.0)
    assert not sampler.keep(10.1, same)
    assert sampler.keep(10.4, same)
    assert not sampler.keep(11.0, same)
    # when the clock steps back
    assert sampler.keep(2.0, same)
