import itertools

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from streamer.domain.frame import FrameRef
from streamer.frames.selection import select_frames


def refs_at(times, changes=None):
    changes = changes or [0.0] * len(times)
    return [
        FrameRef(stream_id="s", id=f"{i}-0", time=t, pts=t, width=1, height=1, change=change)
        for i, (t, change) in enumerate(zip(times, changes, strict=True))
    ]


def positions(refs, count):
    found = select_frames(refs, count)
    return [int(ref.id.split("-")[0]) for ref in found]


def test_without_change_it_is_even_in_time_not_in_number():
    # given a burst of frames, then one a second
    refs = refs_at([0.0, 0.1, 0.2, 0.3, 0.4, 1.0, 2.0, 3.0, 4.0])
    # then the burst counts as one
    assert [r.time for r in select_frames(refs, 5)] == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_one_is_the_newest_and_none_is_none():
    refs = refs_at([0.0, 1.0, 2.0])
    assert positions(refs, 1) == [2]
    assert select_frames(refs, 0) == []
    assert select_frames([], 4) == []


def test_the_frame_that_changed_most_stands_for_its_part_of_the_range():
    # given ten minutes at one frame per second; a person enters at 3:07 and leaves at 6:41
    changes = [0.002] * 600
    changes[187], changes[401] = 0.06, 0.05
    refs = refs_at([float(i) for i in range(600)], changes)
    found = positions(refs, 16)
    # then both moments are selected, and the rest of the time too
    assert {187, 401} <= set(found)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert max(gaps) < 2 * 600 / 15


def test_noise_does_not_move_the_frames_about():
    refs = refs_at(
        [float(i) for i in range(100)], [0.004 + 0.003 * (i * 37 % 10) / 10 for i in range(100)]
    )
    for target, found in zip((0, 33, 66, 99), positions(refs, 4), strict=True):
        assert abs(found - target) <= 6


@pytest.mark.parametrize("busy", [0, 299, 599])
def test_a_busy_second_does_not_take_all_places(busy):
    # given a burst of thirty frames full of change in one second of a quiet ten minutes
    burst = [busy + i / 30 for i in range(1, 30)]
    times = sorted([float(i) for i in range(0, 600, 5)] + burst)
    refs = refs_at(times, [1.0 if t in burst else 0.0 for t in times])
    inside = [r for r in select_frames(refs, 16) if r.time in burst]
    assert 1 <= len(inside) <= 2


def test_places_of_an_empty_time_go_to_where_something_happened():
    # given a stream that was away for most of the range
    times = [float(i) for i in range(30)] + [600.0]
    changes = [0.0] * 31
    changes[7] = changes[19] = 0.2
    found = positions(refs_at(times, changes), 8)
    assert {0, 7, 19, 30} <= set(found)
    assert len(found) == 8


@given(
    frames=st.lists(
        st.tuples(st.floats(0, 1e9, allow_nan=False), st.floats(0, 1, allow_nan=False)), max_size=60
    ),
    count=st.integers(2, 70),
)
@hypothesis_settings(deadline=None)
def test_both_ends_the_order_and_the_number_are_kept_and_it_is_always_the_same(frames, count):
    frames = sorted(frames)
    refs = refs_at([t for t, _ in frames], [c for _, c in frames])
    found = positions(refs, count)
    assert len(found) == min(count, len(refs))
    assert found == sorted(set(found))
    assert found == positions(refs, count)
    if refs:
        assert found[0] == 0
        assert found[-1] == len(refs) - 1


@given(count=st.integers(2, 40), changes=st.lists(st.floats(0, 1), min_size=200, max_size=200))
@hypothesis_settings(deadline=None, max_examples=50)
def test_of_steady_frames_no_part_of_the_range_is_left_out(count, changes):
    found = positions(refs_at([float(i) for i in range(200)], changes), count)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert max(gaps, default=0) <= 2 * 199 / max(1, count - 2) + 1


def test_a_clock_that_steps_back_does_no_harm():
    refs = refs_at([0.0, 10.0, 5.0, 5.5, 6.0, 20.0])
    found = positions(refs, 4)
    assert found[0] == 0
    assert found[-1] == 5
    assert len(found) == 4
