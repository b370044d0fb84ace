"""Which frames of a range to look at, when there are more than may be looked at."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from streamer.domain import FrameRef, thinned

_OFF = 0.01
"""What being half a slot off its place costs a frame, in units of change: a little more than the
noise of a camera, a little less than somebody who comes in."""

_FINEST = 1 << 24


def select_frames(refs: Sequence[FrameRef], count: int) -> list[FrameRef]:
    """At most `count` of `refs` (oldest first): those that tell most, spread over their time.

    The first and the last are always among them; one alone is the last. The time between is cut
    into equal slots, one for each frame that is still wanted, and of each slot the frame that
    changed most is taken, or, if none stands out, the one that makes the spacing even. Places that
    are left because slots were empty go to half-slots that have none yet, those with the greatest
    change first; then to quarters, and so on: a burst gets more only when nothing else is left.

    The same `refs` always give the same frames, in their order. What changed in a frame that is
    left out counts as a change of the next one that is taken.
    """
    if count < 1:
        return []
    if len(refs) <= count:
        return list(refs)
    if count == 1:
        return [refs[-1]]
    times = list(accumulate((ref.time for ref in refs), max))  # a clock may have stepped back
    taken = {0, len(refs) - 1}
    slots = count - 2
    while len(taken) < count and slots <= _FINEST and times[-1] > times[0]:
        even = slots == count - 2
        best = _best_of_each_slot(refs, times, slots, even, taken)
        taken.update(best[: count - len(taken)])
        slots *= 2
    for index in range(len(refs)):  # what is left shares a moment with others
        if len(taken) == count:
            break
        taken.add(index)
    return thinned(refs, sorted(taken))


def _best_of_each_slot(
    refs: Sequence[FrameRef], times: list[float], slots: int, even: bool, taken: set[int]
) -> list[int]:
    """The best frame of each of `slots` equal parts of the time: the greatest change first.

    A slot that has one of `taken` is left out, unless `even`: then every slot gives one, if it
    can, and its place is where evenly spread frames would be; otherwise it is the middle.
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
            worth = refs[index].change - _OFF * off
            if index not in taken and (best is None or worth > best[0]):
                best = worth, index
        if best is not None:
            found.append((-refs[best[1]].change, best[1]))
        first = end
    return [index for _, index in sorted(found)]
