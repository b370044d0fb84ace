"""Tell which parts of a range the kept frames cover, and how old a frame of the present may be."""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from statistics import median

from streamer.domain.frame import MAX_GAPS, FrameRef, Gap
from streamer.domain.sampling import Sampling
from streamer.domain.timestamp import to_datetime

MIN_LIMIT = 5.0
"""Seconds without a frame that always pass for sampling."""

MAX_INTERVALS = 3.0
"""Sampling intervals without a frame that pass for sampling."""

NEWEST = 8
"""Frames that show the distance between two frames of the present."""

_MAX_MEASURED = 600.0
"""Seconds between two frames, at most, that count as the rhythm of a stream."""


def sampling_interval(sampling: Sampling, frames: Sequence[FrameRef] = ()) -> float:
    """Return the seconds from one sampled frame to the next.

    The sampling says it, unless the source is slower: `keyframes` are as rare as the camera sends
    them. So the distance that most of `frames`, oldest first, have counts if it is longer.
    """
    times = [frame.time for frame in frames]
    between = [after - before for before, after in pairwise(times)]
    usual = min(median(between), _MAX_MEASURED) if len(between) >= 2 else 0.0
    stated = sampling.max_interval or 1.0 / sampling.max_fps
    return max(stated, usual)


def max_silence(interval: float) -> float:
    """Return the seconds without a frame that a sampling interval explains."""
    return max(MIN_LIMIT, MAX_INTERVALS * interval)


def find_gaps(
    covered: Iterable[tuple[float, float]],
    since: float,
    until: float,
    limit: Callable[[float], float],
) -> list[Gap]:
    """Return the parts of `[since, until]` that are not covered, the longest ones, by time.

    Args:
        covered: parts of which frames are kept, epoch seconds; a single frame starts where it ends.
        since, until: the range, epoch seconds.
        limit: returns, for a moment, the seconds without a frame that are no gap.
    """
    found: list[tuple[float, float]] = []
    reached = since
    for start, end in [*sorted(covered), (until, until)]:
        start = min(start, until)
        if start - reached > limit(reached):
            found.append((reached, start))
        reached = max(reached, end)
    longest = sorted(found, key=lambda gap: gap[0] - gap[1])[:MAX_GAPS]
    return [Gap(start=to_datetime(start), end=to_datetime(end)) for start, end in sorted(longest)]


def window_gaps(
    sampling: Sampling, frames: Sequence[FrameRef], start: float, end: float, max_frames: int
) -> list[Gap]:
    """Return the gaps of a watch's window, of which at most `max_frames` frames were picked."""
    spread = (end - start) / max(1, max_frames - 2)
    limit = max_silence(max(sampling_interval(sampling), spread))
    return find_gaps(((f.time, f.time) for f in frames), start, end, lambda _: limit)


def tier_slot(tiers: Sequence[tuple[float, float]], age: float) -> float:
    """Return the seconds of which history keeps one frame at `age` seconds; 0 without a history."""
    return max((slot for since, slot in tiers if since <= max(age, 0.0)), default=0.0)
