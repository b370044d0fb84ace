"""Cursors of lists: the place of the last record of a page, opaque to callers.

A page begins after that place, so records that are added meanwhile move nothing. Every text of the
pattern is a place, though a page may be empty after it.
"""

import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from streamer.errors import ErrorCode, StreamerError

_T = TypeVar("_T")

CURSOR_PATTERN = r"^[0-9a-f]{16}[0-9A-Za-z_-]{0,64}$"

_EPOCH = datetime.fromtimestamp(0, UTC)


def encode_cursor(order: int, record_id: str = "") -> str:
    """Return the cursor of a place: what the list is sorted by, then the id of a record."""
    return f"{order:016x}{record_id}"


def decode_cursor(cursor: str) -> tuple[int, str]:
    """Return the order and the id of a place.

    Raises StreamerError(INVALID_REQUEST) for a text without the pattern.
    """
    if not re.fullmatch(CURSOR_PATTERN, cursor):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            "Invalid cursor: omit it to start from the beginning of the list.",
            "cursor",
        )
    return min(int(cursor[:16], 16), 2**63 - 1), cursor[16:]


def page_of(
    records: Sequence[_T],
    place: Callable[[_T], tuple[int, str]],
    limit: int,
    cursor: str | None,
    *,
    descending: bool = False,
) -> tuple[list[_T], str | None]:
    """Return up to `limit` of some records, in the order of their places, after `cursor`; and the
    cursor of the rest, None if there is none.

    Raises StreamerError(INVALID_REQUEST) for a text without the pattern.
    """
    found = sorted(records, key=place, reverse=descending)
    if cursor is not None:
        last = decode_cursor(cursor)
        found = [
            record
            for record in found
            if (place(record) < last if descending else place(record) > last)
        ]
    page = found[:limit]
    return page, encode_cursor(*place(page[-1])) if len(found) > limit else None


def time_order(moment: datetime) -> int:
    """Return a time (aware) as an order: microseconds since the Unix epoch."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment_of(order: int) -> datetime:
    """Return the time that is an order, at most the last one that Python knows."""
    try:
        return _EPOCH + timedelta(microseconds=order)
    except OverflowError:
        return datetime.max.replace(tzinfo=UTC)
