"""Results are deleted by age and by size, in small steps."""

from datetime import timedelta

import pytest

from streamer.domain.result import Result
from streamer.domain.timestamp import to_datetime
from streamer.timeline import expiry
from streamer.timeline.expiry import ResultExpiry, size_of
from tests.support.clocks import ManualClock

NOW = 1_800_000_000.0


@pytest.fixture
def clock():
    return ManualClock(NOW)


def recorded(timeline, ages, stream_id="str_1", text="a car"):
    timeline.record(
        [
            Result(
                request_id=f"{stream_id} {age}",
                kind="caption",
                stream_id=stream_id,
                stream_name=None,
                created_at=to_datetime(NOW) - timedelta(days=age),
                prompt="?",
                text=text,
            )
            for age in ages
        ]
    )


def kept(timeline):
    return sorted(result.request_id for result in timeline.query(limit=1000).results)


def delete_all(expiry):
    while expiry.step():
        pass


def test_results_are_kept_for_ever_by_default(timeline, clock):
    recorded(timeline, [0, 10_000])

    assert ResultExpiry(timeline.database, clock).step() == 0

    assert len(kept(timeline)) == 2


def test_old_results_are_deleted_and_so_are_their_words(timeline, clock):
    recorded(timeline, [0, 6.9, 7.1, 400])

    delete_all(ResultExpiry(timeline.database, clock, days=7))

    assert kept(timeline) == ["str_1 0", "str_1 6.9"]
    assert len(timeline.query(q="car").results) == 2


def test_a_stream_may_have_days_of_its_own(timeline, clock):
    for stream_id in ("str_1", "str_long", "str_short"):
        recorded(timeline, [0.5, 2, 8, 40], stream_id)
    days = {"str_long": 30.0, "str_short": 1.0}

    delete_all(ResultExpiry(timeline.database, clock, days=7, days_of_streams=lambda: days))

    assert kept(timeline) == [
        "str_1 0.5",
        "str_1 2",
        "str_long 0.5",
        "str_long 2",
        "str_long 8",
        "str_short 0.5",
    ]


def test_only_streams_with_days_of_their_own_lose_results(timeline, clock):
    recorded(timeline, [40], "str_1")
    recorded(timeline, [40], "str_short")

    delete_all(ResultExpiry(timeline.database, clock, days_of_streams=lambda: {"str_short": 1.0}))

    assert kept(timeline) == ["str_1 40"]


def test_a_step_is_bounded_and_the_next_one_due_at_once(timeline, clock, monkeypatch):
    monkeypatch.setattr(expiry, "MAX_STEP", 10)
    recorded(timeline, range(100, 125))
    deleting = ResultExpiry(timeline.database, clock, days=7)

    assert [deleting.step() for _ in range(4)] == [10, 10, 5, 0]
    # and what has become too old is deleted a minute later
    recorded(timeline, [6.9999])
    clock.sleep(30)
    assert deleting.step() == 0
    clock.sleep(31)
    assert deleting.step() == 1


def test_a_result_that_comes_late_is_deleted_within_a_day(timeline, clock):
    deleting = ResultExpiry(timeline.database, clock, days=7)
    deleting.step()
    recorded(timeline, [50])
    clock.sleep(120)
    assert deleting.step() == 0
    clock.sleep(86_400)
    assert deleting.step() == 1


def test_days_that_are_taken_back_hold_at_once(timeline, clock):
    days = {"str_1": 100.0}
    recorded(timeline, [50])
    deleting = ResultExpiry(timeline.database, clock, days=7, days_of_streams=lambda: dict(days))
    deleting.step()
    days.clear()
    clock.sleep(120)

    assert deleting.step() == 1


def test_the_oldest_results_are_deleted_until_the_rest_fits(timeline, clock, monkeypatch):
    monkeypatch.setattr(expiry, "MAX_STEP", 50)
    recorded(timeline, range(400), text="word " * 400)
    full = timeline.database.read(size_of)
    limit = full * 3 // 4

    delete_all(ResultExpiry(timeline.database, clock, max_bytes=limit))

    assert timeline.database.read(size_of) <= limit
    left = kept(timeline)
    assert 100 < len(left) < 400
    assert set(left) == {f"str_1 {age}" for age in range(len(left))}
