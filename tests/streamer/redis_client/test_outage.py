"""An outage is logged once when it begins and once when it ends, over all that fails."""

import pytest
import redis
from structlog.testing import capture_logs

from streamer.errors import ErrorCode, StreamerError
from streamer.local.redis_server import EmbeddedServer
from streamer.redis_client.connections import connect
from streamer.redis_client.outage import Outage
from tests.support.clocks import ManualClock

FULL = redis.exceptions.OutOfMemoryError("command not allowed", status_code="OOM")
AWAY = redis.exceptions.ConnectionError("Connection closed by server.")
READONLY = redis.exceptions.ReadOnlyError("You can't write", status_code="READONLY")
BUG = redis.exceptions.ResponseError("WRONGTYPE Operation against a key")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def outage(clock: ManualClock) -> Outage:
    return Outage(clock=clock)


def events(logs) -> list[str]:
    return [entry["event"] for entry in logs]


def test_it_lasts_until_all_that_failed_works_again(outage: Outage, clock: ManualClock) -> None:
    with capture_logs() as logs:
        for _ in range(5):
            for activity in ("jobs", "frames", "heartbeat"):
                outage.failed(activity, FULL)
            clock.sleep(1)
        outage.worked("jobs")
        outage.worked("frames")
        assert outage.reason is not None
        outage.worked("heartbeat")
    assert outage.reason is None
    assert events(logs) == ["outage_began", "outage_ended"]
    assert "full" in logs[0]["reason"]
    assert logs[1]["after_s"] == 5.0


def test_what_is_not_tried_again_does_not_hold_it_open(outage: Outage, clock: ManualClock) -> None:
    outage.failed("a stream that was detached", AWAY)
    outage.failed("jobs", AWAY)
    clock.sleep(31)
    outage.worked("jobs")
    assert outage.reason is None


def test_the_stages_of_a_failover_are_one_outage(outage: Outage, clock: ManualClock) -> None:
    with capture_logs() as logs:
        for error in (AWAY, READONLY, AWAY):
            outage.failed("jobs", error)
            clock.sleep(2)
        outage.worked("jobs")
    assert events(logs) == ["outage_began", "outage_ended"]


def test_a_reason_that_comes_later_and_stays_is_told(outage: Outage, clock: ManualClock) -> None:
    with capture_logs() as logs:
        outage.failed("jobs", AWAY)
        clock.sleep(40)
        for _ in range(50):
            outage.failed("jobs", FULL)
            clock.sleep(1)
    assert events(logs) == ["outage_began", "outage_began"]
    assert "full" in logs[1]["reason"]


def test_a_server_at_its_limit_does_not_fill_the_log(outage: Outage, clock: ManualClock) -> None:
    with capture_logs() as logs:
        for _ in range(50):
            outage.failed("frames", FULL)
            outage.worked("frames")
            clock.sleep(0.2)
    assert events(logs) == ["outage_began", "outage_ended"] * 3


def test_it_is_insisted_with_growing_pauses_until_it_works(outage: Outage) -> None:
    errors = [AWAY, FULL, READONLY, AWAY, AWAY, AWAY, AWAY]
    pauses: list[float] = []

    def call() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert outage.insist("jobs", call, lambda pause: pauses.append(pause) or False) == "done"
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    assert outage.reason is None


@pytest.mark.parametrize("error", [BUG, StreamerError(ErrorCode.NO_FRAMES, "None.")])
def test_what_waiting_does_not_cure_is_raised_at_once(outage: Outage, error: Exception) -> None:
    def call() -> None:
        raise error

    with pytest.raises(type(error)):
        outage.insist("jobs", call, lambda _: pytest.fail("waited"))
    assert outage.reason is None


def test_the_last_error_is_raised_when_the_wait_is_given_up(outage: Outage) -> None:
    def call() -> None:
        raise FULL

    with pytest.raises(redis.exceptions.OutOfMemoryError):
        outage.insist("jobs", call, lambda _: True)


def test_a_replica_makes_idle_connections_anew(valkey: EmbeddedServer) -> None:
    with connect(valkey.url) as client:
        before = client.client_id()
        assert client.client_id() == before
        outage = Outage(client=client)
        outage.failed("jobs", FULL)
        assert client.client_id() == before
        outage.failed("jobs", READONLY)
        assert client.client_id() != before
