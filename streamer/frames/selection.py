"""Select the frames of a range that show most of it."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from streamer.domain.frame import FrameRef, thinned

_OFF_CENTRE_COST = 0.01
"""Change that a frame loses when it lies half a slot off its place: a little more than the noise
of a camera, a little less than a person who enters."""

_MAX_SLOTS = 1 << 24


def select_frames(refs: Sequence[FrameRef], count: int) -> list[FrameRef]:
    """Select at most `count` of `refs` (oldest first): those of greatest change, spread over time.

    The first and the last frame are always selected; a single frame is the last. The time between
    them is divided into equal slots, one per remaining frame. Each slot contributes the frame of
    greatest change or, if no frame stands out, the one that makes the spacing even. Frames that
    empty slots leave over go to half-slots without a frame, greatest change first, then to
    quarter-slots, and so on: a burst gets more frames only when nothing else is left.

    The selection is deterministic and keeps the order. The change of a frame that is left out is
    added to the next selected one.
    """
    if count < 1:
        return []
    if len(refs) <= count:
        return list(refs)
    if count == 1:
        return [refs[-1]]
    times = list(accumulate((ref.time for ref in refs), max))  # the clock may have stepped back
    taken = {0, len(refs) - 1}
    slots = count - 2
    while len(taken) < count and slots <= _MAX_SLOTS and times[-1] > times[0]:
        even = slots == count - 2
        best = _best_of_each_slot(refs, times, slots, even, taken)
        taken.update(best[: count - len(taken)])
        slots *= 2
    for index in range(len(refs)):  # the rest have the same time as others
        if len(taken) == count:
            break
        taken.add(index)
    return thinned(refs, sorted(taken))


def _best_of_each_slot(
    refs: Sequence[FrameRef], times: list[float], slots: int, even: bool, taken: set[int]
) -> list[int]:
    """Return the best frame of each of `slots` equal parts of the time, greatest change first.

    Slots that hold one of `taken` are skipped, unless `even`: then every slot contributes, and
    the place of its frame is that of an even distribution instead of the middle of the slot.
    """
    start, length = times[0], times[-1] - times[0]
    slot_of = [min(slots - 1, int((when - start) / length * slots)) for when in times]
    full = set() if even else {slot_of[index] for index in taken}
    found: list[tuple[float, int]] = []
    first = 0
    while first < len(refs):
        slot = slot_of[first]
        end = bisect_left(slot_of, slot + 1, first)
        place = (slot + 1) / (slots + 1) if even else (slot + 0.5) / slots
        best: tuple[float, int] | None = None
        for index in range(first, end) if slot not in full else ():
            off = abs((times[index] - start) / length - place) * 2 * slots
            worth = refs[index].change - _OFF_CENTRE_COST * off
            if index not in taken and (best is None or worth > best[0]):
                best = worth, index
        if best is not None:
            found.append((-refs[best[1]].change, best[1]))
        first = end
    return [index for _, index in sorted(found)]
