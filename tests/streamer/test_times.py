import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.times import parse_duration, parse_local_time, parse_time

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


@pytest.fixture
def berlin(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time of Berlin, one hour ahead of UTC in winter and two in summer."""
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.parametrize(
    ("text", "utc"),
    [
        ("13:00", "2026-01-31T12:00"),  # now
        ("09:30", "2026-01-31T08:30"),
        ("9:30", "2026-01-31T08:30"),
        (" 09:30:15 ", "2026-01-31T08:30:15"),
        ("16:00", "2026-01-30T15:00"),  # today's is still to come
        ("00:00", "2026-01-30T23:00"),
        ("2026-01-31 09:30", "2026-01-31T08:30"),
        ("2026-01-31T09:30:15", "2026-01-31T08:30:15"),
        ("2025-07-01 16:00", "2025-07-01T14:00"),  # summer time
        ("2026-01-31", "2026-01-30T23:00"),
        ("2026-01-31T09:30Z", "2026-01-31T09:30"),
        ("2026-01-31 09:30+00:00", "2026-01-31T09:30"),
        ("-10m", "2026-01-31T11:50"),
        ("now", "2026-01-31T12:00"),
    ],
)
def test_local_times(berlin: None, text: str, utc: str) -> None:
    assert parse_local_time(text, NOW) == datetime.fromisoformat(utc).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("since", "until", "seconds"),
    [
        ("09:30", "10:00", 1800),
        ("23:00", "01:00", 7200),  # over midnight
        ("12:30", "13:30", 3600),  # ends in half an hour
        ("2026-01-20 22:00", "02:00", 4 * 3600),
    ],
)
def test_a_range_ends_after_it_starts(berlin: None, since: str, until: str, seconds: int) -> None:
    start = parse_local_time(since, NOW)
    end = parse_local_time(until, NOW, after=start)
    assert end - start == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "25:00", "16", "16:61", "4pm", "2026-13-01", "31.01. 16:00"])
def test_what_is_no_local_time(text: str) -> None:
    with pytest.raises(StreamerError, match="is not a time: write 16:00"):
        parse_local_time(text, NOW)
