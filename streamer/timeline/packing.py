"""Store the long fields of a result in few bytes: half of a row was the plan of its frames.

Rows of release 0.1.0 hold the fields as the API shows them; they are returned unchanged.
"""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import groupby
from typing import Any

from streamer.domain.frame import FrameResolution

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def pack_plan(plan: Sequence[FrameResolution]) -> list[Any]:
    """Return `[columns, rows, reason, frames]` for each run of equal frames."""
    runs = groupby(plan, key=lambda frame: (*frame.grid, frame.reason))
    return [[*run, len(list(frames))] for run, frames in runs]


def unpack_plan(stored: Any) -> Any:
    """Return the resolution of each frame that :func:`pack_plan` has packed."""
    try:
        runs = [(_frame(columns, rows, reason), frames) for columns, rows, reason, frames in stored]
        return [frame for frame, frames in runs for _ in range(frames)]
    except (TypeError, ValueError):  # of release 0.1.0, or of a newer one
        return stored


# A page has a thousand of them and few different ones.
@lru_cache(maxsize=4096, typed=True)
def _frame(columns: Any, rows: Any, reason: Any) -> FrameResolution:
    if not (type(columns) is int and type(rows) is int and type(reason) is str):
        raise TypeError
    return FrameResolution.model_construct(grid=(columns, rows), reason=reason)


def pack_times(times: Sequence[datetime]) -> list[int]:
    """Return the milliseconds from the epoch to the first time, and from there to each other."""
    moments = [(time - _EPOCH) // _MILLISECOND for time in times]
    return moments[:1] + [moment - moments[0] for moment in moments[1:]]


def unpack_times(stored: Any) -> Any:
    """Return the times that :func:`pack_times` has packed."""
    try:
        first = _EPOCH + stored[0] * _MILLISECOND
        return [first, *(first + offset * _MILLISECOND for offset in stored[1:])]
    except (TypeError, IndexError, KeyError, OverflowError):  # of 0.1.0, or of a newer release
        return stored
