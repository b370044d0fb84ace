"""`FrameBatch` holds frames of the same windows, and few of them, for a moment."""

import av
import pytest

from streamer.media.source import DecodedFrame
from tests.support.clocks import ManualClock
from workers.ingest.frame_batch import (
    MAX_BATCH_FRAMES,
    MAX_BATCH_PIXELS,
    MAX_BATCH_WAIT,
    FrameBatch,
)


def frame(pts: float, width: int = 64, height: int = 48) -> DecodedFrame:
    return DecodedFrame(av.VideoFrame(width, height, "yuv420p"), pts, pts, 0, 1.0)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000.0)


def test_frames_of_another_window_do_not_fit(clock: ManualClock) -> None:
    batch = FrameBatch(clock)
    assert batch.fits(0.9, [1.0])  # while none waits, any does
    batch.add(frame(1.0))
    assert batch.fits(1.75, [1.0])
    assert batch.fits(1.75, [])
    assert not batch.fits(2.0, [1.0])
    assert not batch.fits(1.75, [1.0, 0.5])
    # and times are rounded
    assert not batch.fits(2.0 - 1e-9, [1.0])
    # when they were taken
    assert [each.pts for each in batch.take()] == [1.0]
    assert batch.fits(2.0, [1.0])
    assert batch.take() == []


def test_many_frames_and_large_frames_are_due_at_once(clock: ManualClock) -> None:
    batch = FrameBatch(clock)
    assert not batch.due
    for number in range(MAX_BATCH_FRAMES):
        assert not batch.due
        batch.add(frame(number / 25))
    assert batch.due
    assert len(batch.take()) == MAX_BATCH_FRAMES
    assert not batch.due
    batch.add(frame(1.0, 1920, 1080))
    assert MAX_BATCH_PIXELS < 1920 * 1080
    assert batch.due
    batch.take()
    batch.add(frame(1.0))  # the pixels of those that were taken do not count
    assert not batch.due


def test_no_frame_waits_for_long(clock: ManualClock) -> None:
    batch = FrameBatch(clock)
    batch.add(frame(0.0))
    clock.now += MAX_BATCH_WAIT / 2
    batch.add(frame(0.1))
    assert not batch.due
    clock.now += MAX_BATCH_WAIT / 2
    assert batch.due
