import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.domain.frame import FrameRef
from streamer.domain.stream import StreamSpec
from streamer.frames.selection import select_frames
from tests.support.ingest_bench import watch
from workers.ingest.stream_watches import StreamWatches
from workers.ingest.windows import Window, WindowGatherer


def ref(pts: float, time: float | None = None) -> FrameRef:
    at = 1000 + pts if time is None else time
    return FrameRef(stream_id="str_1", id=f"{at}", time=at, pts=pts, width=8, height=8, change=0.0)


def gatherer(live: bool, length: float = 10, max_frames: int = 100) -> WindowGatherer:
    return WindowGatherer(length, max_frames, live=live, pick=select_frames)


def closed(windows: WindowGatherer, frames: Sequence[FrameRef]) -> list[Window]:
    return [window for frame in frames for window in windows.add(frame)]


def test_live_windows_are_back_to_back_from_the_first_frame_on() -> None:
    windows = closed(gatherer(True), [ref(n, 1003.5 + n) for n in range(25)])
    assert [w.captured for w in windows] == [(1003.5, 1013.5), (1013.5, 1023.5)]
    assert [frame.pts for frame in windows[0].frames] == list(range(10))
    assert [frame.pts for frame in windows[1].frames] == list(range(10, 20))


def test_a_frame_that_was_held_up_does_not_date_its_window() -> None:
    # given a network that is silent for two seconds at the end of a window
    late = [ref(8, 1010.0), ref(9, 1010.0)]
    frames = [*map(ref, range(8)), *late, *map(ref, range(10, 25))]
    windows = closed(gatherer(True), frames)
    # then it overlaps the next one no more than any other
    assert [w.captured for w in windows] == [(1000, 1010), (1010, 1020)]


def test_windows_of_a_recording_follow_its_own_clock() -> None:
    windows = closed(gatherer(False), [ref(3.5 + n) for n in range(25)])
    assert [(w.start, w.end) for w in windows] == [(0, 10), (10, 20)]
    assert [frame.pts for frame in windows[0].frames] == [3.5 + n for n in range(7)]


def test_a_window_without_frames_does_not_exist() -> None:
    windows = closed(gatherer(False), [ref(1), ref(2), ref(47), ref(62)])
    assert [(w.start, w.end, len(w.frames)) for w in windows] == [(0, 10, 2), (40, 50, 1)]


def test_the_last_window_ends_with_the_recording() -> None:
    windows = gatherer(False)
    closed(windows, [ref(8), ref(11), ref(12)])
    last = windows.flush(12.4)
    assert last is not None
    assert (last.start, last.end) == (10, 12.4)
    assert [frame.pts for frame in last.frames] == [11, 12]
    assert windows.flush(12.4) is None


def test_a_window_never_ends_after_its_length_nor_before_its_last_frame() -> None:
    windows = gatherer(False)
    windows.add(ref(4))
    window = windows.flush(99.0)
    assert window is not None
    assert window.end == 10
    windows.add(ref(14))
    window = windows.flush(1.0)
    assert window is not None
    assert window.end == 14


def test_after_a_loss_live_windows_start_over() -> None:
    windows = gatherer(True)
    windows.add(ref(0, 1000.0))
    windows.add(ref(4, 1004.0))
    assert windows.flush(4.0) is not None
    windows.restart()
    assert closed(windows, [ref(60, 1061.0), ref(70, 1071.0)]) == [
        Window(60, 70, [ref(60, 1061.0)], 1001.0)
    ]


def test_rounding_does_not_move_a_frame_into_the_window_before() -> None:
    windows = closed(gatherer(False, 0.3), [ref(n * 0.1) for n in range(10)])
    assert [len(w.frames) for w in windows] == [3, 3, 3]


def test_a_frame_that_is_a_little_early_belongs_to_the_next_window() -> None:
    windows = WindowGatherer(3, 100, live=True, pick=select_frames, tolerance=0.25)
    early = [ref(n - (0.1 if n % 3 == 0 and n else 0.0)) for n in range(10)]
    assert [len(w.frames) for w in closed(windows, early)] == [3, 3, 3]


def test_a_window_is_closed_as_soon_as_no_further_frame_can_be_in_it() -> None:
    # given a frame a second, and the sampler's promise that none comes in between
    windows = WindowGatherer(3, 100, live=True, pick=select_frames, tolerance=0.25)
    # when frames come
    closed = [windows.add(ref(n, 1000.0 + n), quiet=0.999) for n in range(6)]
    # then a window does not wait for the first frame of the next one
    assert [[(w.start, w.end) for w in some] for some in closed] == [
        [], [], [(0, 3)], [], [], [(3, 6)],
    ]  # fmt: skip
    assert windows.flush() is None


def test_a_late_frame_opens_no_second_window_for_the_same_time() -> None:
    windows = WindowGatherer(3, 100, live=True, pick=select_frames, tolerance=0.25)
    times = [0.0, 1.0, 1.9, 2.5, 3.0]
    closed = [w for t in times for w in windows.add(ref(t), quiet=0.999)]
    assert [(w.start, len(w.frames)) for w in closed] == [(0.0, 3)]
    last = windows.flush()
    assert last is not None
    assert (last.start, len(last.frames)) == (3.0, 2)


def test_windows_of_one_frame_close_at_once() -> None:
    windows = gatherer(True, 1)
    assert [len(windows.add(ref(n, 1000.0 + n), quiet=1.0)) for n in range(4)] == [1, 1, 1, 1]


@given(st.integers(1, 400), st.integers(1, 16))
def test_frames_are_thinned_evenly_and_bounded(count: int, max_frames: int) -> None:
    windows = gatherer(False, 1000, max_frames)
    for n in range(count):
        assert windows.add(ref(n)) == []
        assert len(windows) <= 2 * max_frames
    window = windows.flush()
    assert window is not None
    points = [frame.pts for frame in window.frames]
    assert len(points) == min(count, max_frames)
    assert points == sorted(set(points))
    assert points[-1] == count - 1
    if max_frames > 1:
        assert points[0] == 0
        gaps = [b - a for a, b in pairwise(points)]
        assert max(gaps, default=0) <= 3 * max(1.0, count / max_frames)


def test_what_changed_in_frames_that_are_thinned_out_counts_for_the_next() -> None:
    # given a window of a hundred frames, in each of which a hundredth changes and one shows a sign
    windows = gatherer(False, length=100, max_frames=4)
    for i in range(100):
        fresh = (30.0 if i == 51 else 1.0,)
        assert windows.add(ref(i).model_copy(update={"change": 0.004, "fresh": fresh})) == []
    window = windows.flush()
    # then none of it is lost
    assert window is not None
    assert [window.frames[i].pts for i in (0, -1)] == [0, 99]
    assert sum(frame.change for frame in window.frames) == pytest.approx(0.4)
    after = [frame.fresh[0] for frame in window.frames]
    shown = next(i for i, frame in enumerate(window.frames) if frame.pts >= 51)
    assert after == [30.0 if i == shown else 1.0 for i in range(len(after))]


def test_a_window_ends_although_no_further_frame_is_kept() -> None:
    windows = gatherer(True)
    assert windows.advance(5000.0) is None
    windows.add(ref(0))
    windows.add(ref(4))
    assert windows.advance(9.9) is None
    window = windows.advance(10.0)
    assert window is not None
    assert (window.start, window.end, len(window.frames)) == (0, 10, 2)
    assert windows.advance(30.0) is None
    # then the next one stays on the grid
    windows.add(ref(37))
    window = windows.advance(41.0)
    assert window is not None
    assert (window.start, window.end, len(window.frames)) == (30, 40, 1)


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_a_clock_that_is_set_cuts_a_live_window_and_silences_nothing(step: float) -> None:
    # given frames a second, whose dates step by an hour after the sixth
    frames = [ref(n, 5000 + n + (step if n > 5 else 0.0)) for n in range(25)]
    frames = [frame.model_copy(update={"epoch": int(frame.pts > 5)}) for frame in frames]

    windows = closed(gatherer(True), frames)

    # then no window spans both datings, and every frame up to the open window is in one
    assert [w.captured for w in windows] == [
        (5000, 5005),
        (5006 + step, 5016 + step),
    ]
    assert [len(w.frames) for w in windows] == [6, 10]


def test_the_first_window_of_a_live_stream_may_be_shorter() -> None:
    # given
    windows = WindowGatherer(10.0, 16, live=True, pick=select_frames, first_length=2.0)

    # when a camera connects, is lost, and connects again
    early = [w for n in range(15) for w in windows.add(ref(5.0 + n), quiet=1.0)]
    lost = windows.flush(20.0)
    windows.restart()
    later = [w for n in range(12) for w in windows.add(ref(30.0 + n), quiet=1.0)]

    # then only the very first window is short, and the next ones follow it without a gap
    assert lost is not None
    spans = [(w.start, w.end) for w in (*early, lost, *later)]
    assert spans == [(5.0, 7.0), (7.0, 17.0), (17.0, 20.0), (30.0, 40.0)]
    assert [len(w.frames) for w in early] == [2, 10]


@given(
    shift=st.floats(0, 9.99),
    first=st.floats(1, 10),
    gap=st.tuples(st.integers(1, 60), st.integers(0, 40)),
)
def test_windows_are_moved_by_a_shift_and_stay_back_to_back(
    shift: float, first: float, gap: tuple[int, int]
) -> None:
    # given frames ten times a second, but for a gap
    frames = [n / 10 for n in range(800) if not gap[0] <= n / 10 < sum(gap)]
    moved = WindowGatherer(
        10, 100, live=True, pick=select_frames, first_length=first, shift=shift, tolerance=1e-6
    )

    # when they are cut into windows
    windows = closed(moved, [ref(pts) for pts in frames])

    # then each frame is in the window of its time, and no window is long, nor very short
    for before, window in pairwise(windows):
        assert window.start >= before.end - 1e-6
    for number, window in enumerate(windows):
        assert window.start - 1e-5 <= window.frames[0].pts
        assert window.frames[-1].pts < window.end + 1e-5
        assert 4.9 <= window.end - window.start <= 10 + 1e-6 or number == 0
    # and all ends but the first two are moved as far as is wanted
    for window in windows[2:]:
        off = (window.end - first + shift) % 10
        assert min(off, 10 - off) < 1e-5


def test_streams_that_start_together_ask_at_different_times() -> None:
    # given a hundred cameras that are attached at once, and deliver a frame a second
    asked: list[float] = []
    for number in range(100):
        stream = StreamSpec(
            id=f"str_{number:016x}", name=f"c{number}", url="", live=True, watches=[watch(10.0)]
        )
        watches = StreamWatches(stream, lambda _spec, _watch, window: asked.append(window.end))
        for second in range(60):
            watches.add(ref(second), quiet=0.9)

    # when their windows are regular
    ends = Counter(math.floor(end) for end in asked if 30 <= end < 50)

    # then about as many end in each second
    assert max(ends.values()) <= 20
    assert len(ends) == 20


def test_no_window_is_over_before_the_end_that_is_known_of_it() -> None:
    # given two watches of a camera, of which one window is open
    asked: list[tuple[str, float]] = []
    stream = StreamSpec(name="c", url="", live=True, watches=[watch(2.0), watch(5.0)])
    short, long = (each.id for each in stream.watches)
    watches = StreamWatches(
        stream, lambda _spec, watch, window: asked.append((watch.id, window.end)), resumed=True
    )
    assert watches.ends_at == math.inf
    watches.add(ref(0.0), quiet=0.0)
    # when time passes up to the end of the first, then of the second
    for expected in (short, long):
        end = watches.ends_at
        watches.advance(end - 1e-6)
        assert expected not in dict(asked)
        watches.advance(end)
        # then that one is asked about, when it ends
        assert asked[-1] == (expected, end)
    # and nothing more ends before another frame comes, or the questions change
    assert watches.ends_at == math.inf
    watches.add(ref(20.0), quiet=0.0)
    assert 20 < watches.ends_at <= 22
    watches.follow(stream.model_copy(update={"watches": [watch(30.0)]}))
    assert watches.ends_at == math.inf
    # and the end is known again where an earlier worker has stored frames
    watches.resume([ref(40.0)])
    assert 40 < watches.ends_at <= 70
