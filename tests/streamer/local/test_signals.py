import os
import signal
import threading

import pytest

from streamer.local.signals import SIGNALS, Interrupted, StopSignals


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_sets_the_flag_and_wakes_the_waiter(number: int) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.wait(0.01)
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        assert stop.wait(30.0)
        assert stop.wait(30.0), "once stopped, always stopped"
        with pytest.raises(Interrupted):
            stop.check()
    assert signal.getsignal(number) == before


def test_a_storm_of_signals_while_waiting_cannot_deadlock() -> None:
    with StopSignals() as stop:
        storm = threading.Thread(
            # not os.kill: its last signals may arrive after this test
            target=lambda: [signal.raise_signal(signal.SIGINT) for _ in range(500)]
        )
        storm.start()
        while storm.is_alive():
            stop.wait(0.0001)
        storm.join()
        assert stop.stopped


def test_call_returns_the_value_and_the_error() -> None:
    def fail() -> None:
        raise KeyError("x")

    with StopSignals() as stop:
        assert stop.call(lambda: 7) == 7
        with pytest.raises(KeyError):
            stop.call(fail)


def test_call_abandons_what_blocks() -> None:
    release = threading.Event()
    with StopSignals() as stop:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        with pytest.raises(Interrupted):
            stop.call(lambda: release.wait(3600.0))
        with pytest.raises(Interrupted):
            stop.call(lambda: pytest.fail("must not be called any more"))
    release.set()
