"""A moment as people write it: RFC 3339, `now`, or so long ago (`-90s`, `-10m`, `-2h`, `-1d`)."""

import re
from datetime import UTC, datetime, timedelta

from streamer.errors import ErrorCode, StreamerError

When = datetime | str | None
"""A moment as callers may give it: aware, or in words for :func:`parse_time`, or not at all."""

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_RELATIVE = re.compile(r"-(\d{1,9}(?:\.\d{1,9})?)([smhd])")
_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)([smhd]?)")
# A `+` that nobody percent-encoded arrives from a query string as a space.
_LOST_PLUS = re.compile(r" (?=\d\d:\d\d$)")


def parse_time(text: str, now: datetime) -> datetime:
    """The UTC moment that `text` names; `now` (aware) is what relative times count from.

    Raises StreamerError(INVALID_REQUEST) with examples when it is neither form.
    """
    text = text.strip()
    if text.lower() == "now":
        return now.astimezone(UTC)
    try:
        if match := _RELATIVE.fullmatch(text):
            return now.astimezone(UTC) - timedelta(**{_UNITS[match[2]]: float(match[1])})
        moment = datetime.fromisoformat(_LOST_PLUS.sub("+", text))
        if moment.tzinfo is None or len(text) < len("2026-01-31T09:30Z"):
            raise ValueError
        return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"'{text[:60]}' is not a time: write -90s, -10m, -2h, now, "
            "or RFC 3339 with its zone such as 2026-01-31T09:30:00Z.",
        ) from None


def parse_duration(text: str) -> float:
    """Seconds that `text` says: `90s`, `10m`, `12h`, `7d`, or a number of seconds.

    Raises StreamerError(INVALID_REQUEST) with examples when it is none of these.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST, f"'{text[:60]}' is no length of time: write 12h, 7d or 0."
        )
    return timedelta(**{_UNITS[match[2] or "s"]: float(match[1])}).total_seconds()


def moment(when: When, now: datetime) -> datetime | None:
    """`when` as an aware datetime."""
    return parse_time(when, now) if isinstance(when, str) else when
