"""Times inside records: timezone-aware UTC datetimes, RFC 3339 in JSON."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, PlainSerializer

from streamer import clock
from streamer.times import as_utc


def utc_now() -> datetime:
    """Return the current time, by the clock that this process shares, as an aware UTC datetime."""
    return to_datetime(clock.shared().time())


def to_datetime(epoch: float) -> datetime:
    """Convert seconds since the Unix epoch to an aware UTC datetime."""
    return datetime.fromtimestamp(epoch, UTC)


def _as_utc(value: datetime) -> datetime:
    if value.tzinfo is UTC:
        return value
    return value.replace(tzinfo=UTC) if value.tzinfo is None else as_utc(value)


def rfc3339(value: datetime) -> str:
    """Format in RFC 3339 with milliseconds and `Z`: of fixed width, so that text sorts by time."""
    moment = value if value.tzinfo is UTC else value.astimezone(UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


Timestamp = Annotated[
    datetime, AfterValidator(_as_utc), PlainSerializer(rfc3339, return_type=str, when_used="json")
]
