from datetime import UTC, datetime, timedelta

import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.times import parse_duration, parse_time

NOW = datetime(2026, 1, 31, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "ago"),
    [
        ("-90s", timedelta(seconds=90)),
        ("-1.5m", timedelta(seconds=90)),
        ("-10m", timedelta(minutes=10)),
        ("-2h", timedelta(hours=2)),
        ("-1d", timedelta(days=1)),
        (" now ", timedelta()),
    ],
)
def test_relative(text: str, ago: timedelta) -> None:
    assert parse_time(text, NOW) == NOW - ago


@pytest.mark.parametrize(
    "text",
    [
        "2026-01-31T09:30:00Z",
        "2026-01-31T11:30:00+02:00",
        "2026-01-31T11:30:00 02:00",  # a + that a query string turned into a blank
        "2026-01-31T09:30:00.000Z",
        "2026-01-31T09:30Z",
    ],
)
def test_rfc3339(text: str) -> None:
    assert parse_time(text, NOW) == datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    ["", "10m", "-10", "-10y", "yesterday", "2026-01-31", "2026-01-31T09:30:00", "-999999999d"],
)
def test_refused(text: str) -> None:
    with pytest.raises(StreamerError, match="is not a time") as caught:
        parse_time(text, NOW)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("10m", 600), ("12h", 43200), ("7d", 604800), ("0", 0), (" 1.5h ", 5400)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "-7d", "7w", "d", "1e9", "a week", "9999999999d"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(StreamerError, match="write 12h") as caught:
        parse_duration(text)
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    assert "\n" not in caught.value.message
