"""Cursors of lists: the place of the last record of a page, opaque to callers.

A page begins after that place, so records that are added meanwhile move nothing.
"""

import base64
import json
from typing import Any

from streamer.errors import ErrorCode, StreamerError

MAX_CURSOR = 1000
"""Characters of a cursor."""


def encode_cursor(*place: str | float) -> str:
    """Return the cursor of a place in a list."""
    return base64.urlsafe_b64encode(json.dumps(place).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, *kinds: type) -> list[Any]:
    """Return the place that a cursor of :func:`encode_cursor` is, as values of these `kinds`.

    Raises StreamerError(INVALID_REQUEST) if it is none.
    """
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        place = json.loads(raw)
        if not isinstance(place, list) or list(map(type, place)) != list(kinds):
            raise ValueError
        return place
    except (ValueError, RecursionError):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            "Invalid cursor: omit it to start from the beginning of the list.",
            "cursor",
        ) from None
