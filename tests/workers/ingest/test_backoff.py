import pytest

from streamer.errors import ErrorCode
from workers.ingest.backoff import Backoff

LOST = ErrorCode.STREAM_CONNECTION_FAILED


def highest(low: float, high: float) -> float:
    assert low == 0.0
    return high


def test_the_bound_doubles_up_to_the_cap() -> None:
    backoff = Backoff(60, draw=highest)
    assert [backoff.delay(LOST) for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]


def test_the_jitter_is_full() -> None:
    backoff = Backoff(60)
    delays = [backoff.delay(LOST) for _ in range(300)]
    late = delays[10:]
    assert 0 <= min(delays) <= max(delays) <= 60
    assert min(late) < 10
    assert max(late) > 50


def test_a_minute_of_frames_resets_the_bound() -> None:
    backoff = Backoff(60, draw=highest)
    for _ in range(5):
        backoff.delay(LOST)
    backoff.note_uptime(59.0)
    assert backoff.delay(LOST) == 32
    backoff.note_uptime(60.0)
    assert backoff.delay(LOST) == 1


@pytest.mark.parametrize("code", [ErrorCode.STREAM_AUTH_FAILED, ErrorCode.STREAM_NOT_FOUND])
def test_failures_that_need_a_person_wait_for_the_cap_at_once(code: ErrorCode) -> None:
    backoff = Backoff(60)
    assert [backoff.delay(code) for _ in range(3)] == [60, 60, 60]


def test_a_small_cap_bounds_the_first_wait_too() -> None:
    assert Backoff(0.2, draw=highest).delay(LOST) == 0.2
