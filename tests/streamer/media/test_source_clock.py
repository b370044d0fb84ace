"""SourceClock: every kind of jump becomes one rising clock, and nothing else is touched."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.media.source_clock import MAX_JUMP, SourceClock, UnrolledTime

GAP = 0.1
WRAP_33 = 2**33 / 90_000


def feed(clock: SourceClock, packets, start: float = 1000.0, pace: float = GAP):
    """Unroll (pts, dts, key) packets that arrive every `pace` seconds."""
    return [
        clock.unroll(pts, dts, key=key, arrival=start + pace * number)
        for number, (pts, dts, key) in enumerate(packets)
    ]


def plain(count: int, start: float, every: float = GAP, gop: int = 20):
    """Packets without reordering."""
    return [(start + n * every, start + n * every, n % gop == 0) for n in range(count)]


def reordered(count: int, start: float, every: float = GAP):
    """Packets in decoding order of closed groups I P B B P B B ..., each with its dts."""
    order: list[tuple[int, bool]] = []
    for first in range(0, count, 10):
        last = min(first + 10, count)
        order.append((first, True))
        for anchor in range(first + 3, last, 3):
            order += [(anchor, False), (anchor - 2, False), (anchor - 1, False)]
        done = {place for place, _ in order}
        order += [(place, False) for place in range(first, last) if place not in done]
    return [
        (start + place * every, start + (n - 2) * every, key)
        for n, (place, key) in enumerate(order)
    ]


def shown(times: list[UnrolledTime]) -> list[float]:
    """Presentation times in the order in which the pictures are shown."""
    return sorted(time.pts for time in times if time.pts is not None)


def test_a_clock_that_rises_stays_as_it_is() -> None:
    packets = plain(100, start=1.4)

    times = feed(SourceClock(live=False, gap=GAP), packets)

    assert [(t.pts, t.dts, t.epoch) for t in times] == [(pts, dts, 0) for pts, dts, _ in packets]


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("make", [plain, reordered])
@pytest.mark.parametrize("length", [2, 3, 10, 61, 600])
@pytest.mark.parametrize("second", [1.4, 0.0, 5.1, 90_000.0])
def test_a_join_goes_on_after_the_last_picture(make, length, second, live) -> None:
    # given two parts of which the second begins anywhere
    ahead = second - (1.4 + length * GAP)
    packets = make(length, 1.4) + make(length, second)

    times = feed(SourceClock(live=live, gap=GAP), packets)

    # then the pictures follow each other at the rate of the source; a gap stays a gap, but for a
    # live source whose clock runs ahead of the time that has passed
    expected = [GAP] * (2 * length - 1)
    if ahead > 0 and not (live and ahead > MAX_JUMP):
        expected[length - 1] += ahead
    stamps = shown(times)
    steps = [after - before for before, after in itertools.pairwise(stamps)]
    assert stamps[0] == pytest.approx(1.4)
    assert steps == pytest.approx(expected, abs=1e-3)


@given(
    st.lists(st.tuples(st.integers(2, 40), st.floats(0, 1e5)), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
)
def test_unrolled_time_never_goes_back_more_than_pictures_are_reordered(parts, live, with_b):
    packets = []
    for length, start in parts:
        packets += (reordered if with_b else plain)(length, start)

    times = feed(SourceClock(live=live, gap=GAP), packets)

    newest = float("-inf")
    for time in times:
        assert time.pts is not None
        assert time.pts > newest - 4 * GAP
        newest = max(newest, time.pts)
    assert [t.epoch for t in times] == sorted(t.epoch for t in times)


def test_a_counter_that_wraps_goes_on_in_the_same_epoch() -> None:
    packets = plain(30, WRAP_33 - 1.5)
    packets = [(pts % WRAP_33, dts % WRAP_33, key) for pts, dts, key in packets]

    times = feed(SourceClock(live=False, gap=GAP), packets)

    stamps = shown(times)
    assert stamps[-1] - stamps[0] == pytest.approx(29 * GAP)
    assert {t.epoch for t in times} == {0}


def test_a_gap_in_a_recording_stays_a_gap() -> None:
    times = feed(SourceClock(live=False, gap=GAP), plain(10, 0.0) + plain(10, 300.0))

    assert times[10].pts == 300.0
    assert times[10].epoch == 0


def test_a_live_clock_that_jumps_ahead_and_back_costs_nothing() -> None:
    # given an RTP clock that is an hour ahead for a while
    packets = plain(50, 0.0) + plain(50, 3605.0) + plain(50, 10.0)

    times = feed(SourceClock(live=True, gap=GAP), packets)

    stamps = shown(times)
    steps = [after - before for before, after in itertools.pairwise(stamps)]
    assert steps == pytest.approx([GAP] * 149, abs=1e-3)
    assert times[-1].epoch == 2


def test_time_that_passes_while_a_live_source_restarts_counts() -> None:
    clock = SourceClock(live=True, gap=GAP)
    feed(clock, plain(10, 50.0), start=100.0)

    time = clock.unroll(0.0, 0.0, key=True, arrival=130.0)

    assert time.pts == pytest.approx(50.9 + 130.0 - 100.9)


@pytest.mark.parametrize("speed", [0.0, 0.1, 0.5, 2.0, 10.0])
def test_a_live_clock_that_runs_wrong_is_replaced_by_arrival(speed: float) -> None:
    packets = [(n * GAP * speed, n * GAP * speed, n % 20 == 0) for n in range(600)]
    clock = SourceClock(live=True, gap=GAP)

    times = feed(clock, packets)

    # then a minute of pictures spans about a minute once the fault is found
    assert clock.by_arrival
    late = [time.pts for time in times[300:]]
    assert late[-1] - late[0] == pytest.approx(299 * GAP, abs=0.5)


def test_a_network_that_stalls_is_not_the_clocks_fault() -> None:
    # given stalls of 8 s, after which what was held up comes at once
    clock = SourceClock(live=True, gap=GAP)
    arrival = 0.0
    for n, (pts, dts, key) in enumerate(plain(3000, 0.0)):
        arrival = max(arrival, n * GAP + (8.0 if n % 300 == 299 else 0.0))
        time = clock.unroll(pts, dts, key=key, arrival=arrival)
        assert time.pts == pytest.approx(pts)

    assert not clock.by_arrival


def test_a_server_that_sends_a_backlog_first_is_not_the_clocks_fault() -> None:
    clock = SourceClock(live=True, gap=GAP)
    for n, (pts, dts, key) in enumerate(plain(600, 0.0)):
        clock.unroll(pts, dts, key=key, arrival=max(0.002 * n, n * GAP - 8.0))

    assert not clock.by_arrival


def test_jitter_between_key_frames_is_left_alone() -> None:
    packets = [(0.0, None, True), (0.3, None, False), (0.1, None, False), (0.2, None, False)]

    times = feed(SourceClock(live=True, gap=GAP), packets)

    assert [t.pts for t in times] == [0.0, 0.3, 0.1, 0.2]
    assert times[-1].epoch == 0


def test_rare_pictures_may_be_reordered_by_seconds() -> None:
    # given a picture every few seconds, shown in another order than decoded, without dts
    packets = [(0.0, None, True), (9.0, None, False), (3.0, None, False), (6.0, None, False)]

    times = feed(SourceClock(live=False, gap=GAP), packets)

    assert [t.pts for t in times] == [0.0, 9.0, 3.0, 6.0]


def test_a_step_back_without_decoding_times_shows_at_pictures_of_another_group() -> None:
    # given two groups of pictures, and then one that lost its key frame
    packets = [(10.0 + n, None, n % 5 == 0) for n in range(10)] + [(2.0, None, False)]

    times = feed(SourceClock(live=False, gap=1.0), packets)

    assert times[-1].pts == pytest.approx(20.0)


def test_packets_without_timestamps_are_passed_through() -> None:
    assert SourceClock(live=True).unroll(None, None, key=True, arrival=1.0) == UnrolledTime(
        None, None, 0
    )
