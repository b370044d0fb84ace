"""Frames that several clips show are opened once."""

import threading

import numpy as np
import pytest

from streamer.domain.frame import FrameRef
from streamer.frames import jpeg as jpeg_module
from streamer.frames.jpeg import from_jpeg, to_jpeg
from tests.support.clips import frames, request, run
from workers.gpu.opened_frames import OpenedFrames

SIDE = 64
BYTES = SIDE * SIDE * 3


def ref(number: int) -> FrameRef:
    place = {"time": float(number), "pts": float(number), "change": 0.0}
    return FrameRef(stream_id="str_1", id=f"{number}-0", width=SIDE, height=SIDE, **place)


def jpeg_of(number: int) -> bytes:
    return to_jpeg(np.full((SIDE, SIDE, 3), 20 * number, np.uint8), 90)


def test_two_watches_of_a_stream_open_its_frames_once_and_are_answered_alike(own) -> None:
    refs = frames(own, 4)
    first = run(own, request(own, refs=refs))
    second = run(own, request(own, refs=refs))
    opened = own.backend.frames
    assert (opened.opened, opened.shared) == (4, 4)
    assert first.text == second.text
    assert second.error is None


def test_a_frame_is_opened_again_when_more_of_it_is_needed() -> None:
    kept, jpeg = OpenedFrames(1 << 20), jpeg_of(1)
    small = kept.open(ref(1), jpeg, (16, 16))
    assert kept.open(ref(1), jpeg, (12, 15)) is small  # reduced as much
    whole = kept.open(ref(1), jpeg, None)
    assert (small.shape, whole.shape) == ((16, 16, 3), (SIDE, SIDE, 3))
    assert np.array_equal(whole, from_jpeg(jpeg, SIDE, SIDE))
    assert (kept.opened, kept.shared) == (2, 1)


def test_the_pictures_that_are_kept_are_bounded_and_those_used_longest_ago_go_first() -> None:
    kept = OpenedFrames(2 * BYTES)
    for number in (1, 2, 1, 3):  # 2 goes
        kept.open(ref(number), jpeg_of(number), None)
    for number in (1, 3, 2):
        kept.open(ref(number), jpeg_of(number), None)
    assert (kept.opened, kept.shared) == (4, 3)


def test_nothing_is_kept_without_room() -> None:
    kept = OpenedFrames(0)
    for _ in range(2):
        assert kept.open(ref(1), jpeg_of(1), None).shape == (SIDE, SIDE, 3)
    assert kept.opened == 2


def test_a_damaged_frame_is_an_error_for_everybody_and_not_kept() -> None:
    kept = OpenedFrames(1 << 20)
    for _ in range(2):
        with pytest.raises(ValueError, match="JPEG"):
            kept.open(ref(1), b"nothing", None)
    assert kept.open(ref(1), jpeg_of(1), None).shape == (SIDE, SIDE, 3)


def test_slots_that_want_one_frame_at_once_wait_for_the_one_that_opens_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a slot that is opening a frame
    kept = OpenedFrames(1 << 20)
    begun, go_on = threading.Event(), threading.Event()

    def slowly(*arguments: object) -> object:
        begun.set()
        assert go_on.wait(60)
        return from_jpeg(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(jpeg_module, "from_jpeg", slowly)
    found: list[object] = []
    slots = [
        threading.Thread(target=lambda: found.append(kept.open(ref(1), jpeg_of(1), None)))
        for _ in range(4)
    ]
    slots[0].start()
    assert begun.wait(60)

    # when others want it too
    for slot in slots[1:]:
        slot.start()
    while kept.shared < 3:
        threading.Event().wait(0.01)
    go_on.set()
    for slot in slots:
        slot.join()

    # then all have the same picture
    assert kept.opened == 1
    assert len({id(picture) for picture in found}) == 1
