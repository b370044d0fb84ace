"""Parse times and durations: RFC 3339, `now`, relative times (`-90s`, `-2h`) and `12h`.

People at a terminal may also write local times, as the terminal shows them: `16:00`.
"""

import re
from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING

from streamer.errors import ErrorCode, StreamerError

if TYPE_CHECKING:
    from pydantic.config import JsonDict

When = datetime | str | None
"""A time as callers give it: an aware datetime, a text for :func:`parse_time`, or None."""

RELATIVE_PATTERN = (
    r"(now|-([0-9]{1,9}(\.[0-9]{1,9})?[sm]|[0-9]{1,6}(\.[0-9]{1,9})?h|[0-9]{1,5}(\.[0-9]{1,9})?d))"
)
"""Regular expression of the texts for :func:`parse_time` that count from now."""

TIME_SCHEMA: "JsonDict" = {
    "anyOf": [
        {"type": "string", "format": "date-time"},
        {"type": "string", "pattern": f"^{RELATIVE_PATTERN}$"},
    ]
}
"""The texts that :func:`parse_time` is documented to take, as JSON schema."""

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_RELATIVE = re.compile(r"-(\d{1,9}(?:\.\d{1,9})?)([smhd])")
_CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d)?")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_DURATION = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)([smhd]?)")
# A query string turns a `+` that is not percent-encoded into a space.
_LOST_PLUS = re.compile(r" (?=\d\d:\d\d$)")


def parse_time(text: str, now: datetime) -> datetime:
    """Parse `text` as a UTC time; relative times count from `now` (aware).

    RFC 3339 that UTC does not reach is the first or the last time.

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
        return as_utc(moment)
    except (ValueError, OverflowError):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"'{text[:60]}' is not a time: write -90s, -10m, -2h, now, "
            "or RFC 3339 with a time zone such as 2026-01-31T09:30:00Z.",
        ) from None


def as_utc(moment: datetime) -> datetime:
    """Return an aware time in UTC: the first or the last one if UTC does not reach so far."""
    try:
        return moment.astimezone(UTC)
    except OverflowError:
        return (datetime.min if moment.year == 1 else datetime.max).replace(tzinfo=UTC)


def counts_from_now(text: str) -> bool:
    """Return whether `text` is a time that depends on the clock of who reads it: `-10m`, `now`."""
    return text.strip().lower() == "now" or _RELATIVE.fullmatch(text.strip()) is not None


def parse_local_time(text: str, now: datetime, after: datetime | None = None) -> datetime:
    """Parse `text` like :func:`parse_time`, or as local time: `16:00`, `2026-01-31 16:00`.

    A time without a date is its latest occurrence before `now`; with `after`, its first one after
    that. Seconds may follow. A date alone is its midnight.

    Raises StreamerError(INVALID_REQUEST), with examples, for any other text.
    """
    text = text.strip()
    try:
        if _CLOCK.fullmatch(text):
            clock = time.fromisoformat(text.zfill(8 if text.count(":") == 2 else 5))
            return _occurrence(clock, now, after).astimezone(UTC)
        if _DATE.match(text):
            moment = datetime.fromisoformat(text)
            if moment.tzinfo is None:
                return moment.astimezone(UTC)
        return parse_time(text, now)
    except (ValueError, OverflowError, StreamerError):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"'{text[:60]}' is not a time: write 16:00, '2026-01-31 16:00', -90s, -10m, -2h, now, "
            "or RFC 3339 with a time zone such as 2026-01-31T09:30:00Z.",
        ) from None


def _occurrence(clock: time, now: datetime, after: datetime | None) -> datetime:
    """Return a naive local time: of the day, that is nearest before `now` or after `after`."""
    day = timedelta(days=1)
    if after is not None:
        start = after.astimezone().replace(tzinfo=None)
        found = datetime.combine(start.date(), clock)
        return found if found > start else found + day
    here = now.astimezone().replace(tzinfo=None)
    found = datetime.combine(here.date(), clock)
    return found if found <= here else found - day


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
