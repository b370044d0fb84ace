"""Parse times and durations: RFC 3339, `now`, relative times (`-90s`, `-2h`) and `12h`."""

import re
from datetime import UTC, datetime, timedelta

from streamer.errors import ErrorCode, StreamerError

When = datetime | str | None
"""A time as callers give it: an aware datetime, a text for :func:`parse_time`, or None."""

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_RELATIVE = re.compile(r"-(\d{1,9}(?:\.\d{1,9})?)([smhd])")
_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)([smhd]?)")
# A query string turns a `+` that is not percent-encoded into a space.
_LOST_PLUS = re.compile(r" (?=\d\d:\d\d$)")


def parse_time(text: str, now: datetime) -> datetime:
    """Parse `text` as a UTC time; relative times count from `now` (aware).

    Raises StreamerError(INVALID_REQUEST), with examples, for any other text.
    """
    text = text.strip().encode(errors="replace").decode()
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
            "or RFC 3339 with a time zone such as 2026-01-31T09:30:00Z.",
        ) from None


def parse_duration(text: str) -> float:
    """Parse a duration such as `90s`, `10m`, `12h`, `7d` or a number of seconds; return seconds.

    Raises StreamerError(INVALID_REQUEST), with examples, for any other text.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST, f"'{text[:60]}' is not a duration: write 12h, 7d or 0."
        )
    return timedelta(**{_UNITS[match[2] or "s"]: float(match[1])}).total_seconds()


def moment(when: When, now: datetime) -> datetime | None:
    """Convert `when` to an aware datetime; see :func:`parse_time`."""
    return parse_time(when, now) if isinstance(when, str) else when
