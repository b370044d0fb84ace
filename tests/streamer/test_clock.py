"""The clock of Redis, as a machine measures it whose own clock is wrong."""

import pytest
from structlog.testing import capture_logs

from streamer import clock
from streamer.clock import ServerClock, SystemClock
from streamer.domain.timestamp import utc_now
from streamer.redis_client.connections import Connections
from streamer.settings import Settings
from tests.support.clocks import ManualClock, ShiftedClock

SHIFTS = [60.0, 3600.0, -60.0, -3600.0]


class Machine(ManualClock):
    """A machine whose wall clock and monotonic clock have nothing to do with each other."""

    def __init__(self) -> None:
        super().__init__(1000.0)
        self.wall = 5_000_000.0

    def time(self) -> float:
        return self.wall + self.now


class Server:
    """A server that reads its clock `share` of the way through a round trip of `trip` seconds."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.ahead = 1_800_000_000.0
        self.trip, self.share = 0.001, 0.5
        self.answers = True

    def time(self) -> float:
        return self._machine.now + self.ahead

    def ask(self) -> float | None:
        if not self.answers:
            return None
        self._machine.sleep(self.trip * self.share)
        found = self.time()
        self._machine.sleep(self.trip * (1 - self.share))
        return found


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def server(machine: Machine) -> Server:
    return Server(machine)


def test_the_time_is_that_of_the_server(machine: Machine, server: Server) -> None:
    ours = ServerClock(server.ask, machine)
    assert ours.time() == machine.time()  # not measured yet
    ours.measure()
    assert ours.time() == pytest.approx(server.time(), abs=0.001)
    machine.sleep(3600)
    assert ours.time() == pytest.approx(server.time(), abs=0.001)
    assert ours.offset == pytest.approx(5_000_000 - 1_800_000_000, abs=0.01)


@pytest.mark.parametrize("shift", SHIFTS)
def test_setting_the_clock_of_the_machine_changes_nothing(
    machine: Machine, server: Server, shift: float
) -> None:
    ours = ServerClock(server.ask, machine)
    ours.measure()
    before = ours.time()
    machine.wall += shift
    assert ours.time() == before


@pytest.mark.parametrize("shift", SHIFTS)
def test_setting_the_clock_of_the_server_is_followed(
    machine: Machine, server: Server, shift: float
) -> None:
    ours = ServerClock(server.ask, machine)
    ours.measure()
    server.ahead += shift
    ours.measure()
    assert ours.time() == pytest.approx(server.time(), abs=0.001)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_slow_answer_does_no_harm(machine: Machine, server: Server, share: float) -> None:
    # given a good measurement
    ours = ServerClock(server.ask, machine)
    ours.measure()
    # when the server is silent for 20 seconds, before or after it reads its clock
    server.trip, server.share = 20.0, share
    ours.measure()
    # then the good one still counts, up to the drift of the clocks
    assert ours.time() == pytest.approx(server.time(), abs=0.05)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("off", [0.0, 0.3, -0.3])
def test_a_slow_first_answer_lets_no_time_jump(
    machine: Machine, server: Server, share: float, off: float
) -> None:
    # given a program that starts while the server is silent, on a machine whose clock is good
    machine.wall = server.ahead + off
    ours = ServerClock(server.ask, machine)
    server.trip, server.share = 8.0, share
    ours.measure()
    # then that clock counts: it agrees with what the server has said
    assert abs(ours.offset) <= 0.301
    # and when the server answers at once, the time moves by what that clock was wrong
    server.trip = 0.001
    before = ours.offset
    ours.measure()
    assert ours.time() == pytest.approx(server.time(), abs=0.01)
    assert abs(ours.offset - before) <= 0.301


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_a_slow_answer_is_asked_for_again(machine: Machine, server: Server, share: float) -> None:
    # given a machine whose clock is wrong, and a server that is silent once
    def ask() -> float | None:
        found = server.ask()
        server.trip = 0.001
        return found

    ours = ServerClock(ask, machine)
    server.trip, server.share = 8.0, share
    # when it is asked for the first time
    ours.measure()
    # then the second answer counts
    assert ours.time() == pytest.approx(server.time(), abs=0.01)


def test_a_server_that_stays_slow_is_not_asked_without_an_end(
    machine: Machine, server: Server
) -> None:
    ours = ServerClock(server.ask, machine)
    server.trip = 8.0
    ours.measure()
    assert machine.now == 1000.0 + 3 * 8.0
    assert abs(ours.time() - server.time()) <= 8.0


def test_two_clocks_that_drift_apart_stay_together(machine: Machine, server: Server) -> None:
    ours = ServerClock(server.ask, machine)
    for _ in range(1000):
        server.ahead += 0.0005  # 100 ppm
        ours.measure()
        machine.sleep(5)
    assert ours.time() == pytest.approx(server.time(), abs=0.01)


def test_a_server_that_does_not_answer_stops_no_time(machine: Machine, server: Server) -> None:
    ours = ServerClock(server.ask, machine)
    ours.measure()
    server.answers = False
    machine.sleep(10)
    ours.measure()
    assert ours.time() == pytest.approx(server.time(), abs=0.001)


def test_a_wrong_clock_is_reported_once_and_its_end_too(machine: Machine, server: Server) -> None:
    ours = ServerClock(server.ask, machine)
    machine.wall = server.ahead
    with capture_logs() as logs:
        for wall in (0.0, 3600.0, 3600.0, 0.5, 0.0, -60.0):
            machine.wall = server.ahead + wall
            ours.measure()
    assert [entry["event"] for entry in logs] == ["clock_differs", "clock_agrees", "clock_differs"]
    assert [entry["seconds"] for entry in logs if "seconds" in entry] == [3600.0, -60.0]


@pytest.mark.parametrize("shift", SHIFTS)
def test_a_process_goes_by_the_clock_of_its_redis(settings: Settings, shift: float) -> None:
    with Connections(settings, machine=ShiftedClock(shift)) as connections:
        seconds, microseconds = connections.main.time()
        real = seconds + microseconds / 1e6
        assert connections.clock.time() == pytest.approx(real, abs=20)
        assert utc_now().timestamp() == pytest.approx(real, abs=20)
        assert connections.clock.offset == pytest.approx(shift, abs=20)
    clock.share(SystemClock())
