"""The watchdog of an engine, with a clock that is moved by hand."""

import threading

import pytest

from tests.support.clocks import ManualClock
from workers.gpu.watchdog import Watchdog

LIMIT = 120.0


class Scene:
    """An engine's counts, a clock, and the watchdog that checks both."""

    def __init__(self):
        self.clock = ManualClock(1000.0)
        self.stats = dict.fromkeys(("submitted", "finished", "failed", "cancelled", "steps"), 0)
        self.dog = Watchdog(lambda: self.stats, LIMIT, lambda _: None, self.clock)

    def stuck_after(self, seconds, **stats):
        self.stats.update(stats)
        self.clock.sleep(seconds)
        return self.dog.check()


@pytest.fixture
def scene():
    return Scene()


def test_an_idle_engine_is_never_stuck(scene):
    assert not any(scene.stuck_after(LIMIT) for _ in range(5))


def test_a_step_that_does_not_end_is_noticed(scene):
    assert not scene.stuck_after(1, submitted=2, steps=7)
    assert not scene.stuck_after(LIMIT - 1)
    assert scene.stuck_after(2)


def test_time_counts_from_the_first_request_not_from_the_last_step(scene):
    # given an engine that was idle for long after its seventh step
    scene.stuck_after(1, submitted=1, finished=1, steps=7)
    scene.stuck_after(10 * LIMIT)
    # then a new request has as long as any
    assert not scene.stuck_after(1, submitted=2)
    assert not scene.stuck_after(LIMIT - 2)
    assert scene.stuck_after(2)


def test_slow_steps_are_not_stuck(scene):
    scene.stuck_after(1, submitted=1)
    assert not any(scene.stuck_after(LIMIT - 1, steps=n) for n in range(1, 6))


@pytest.mark.parametrize("end", ["finished", "failed", "cancelled"])
def test_every_end_of_a_request_counts(scene, end):
    scene.stuck_after(1, submitted=3, steps=1)
    assert not scene.stuck_after(2 * LIMIT, **{end: 3})


def test_it_reports_once_from_its_own_thread():
    reported, stats = [], {"submitted": 1, "finished": 0, "failed": 0, "cancelled": 0, "steps": 0}
    happened = threading.Event()

    def stuck(seconds):
        reported.append(seconds)
        happened.set()

    dog = Watchdog(lambda: stats, 0.2, stuck)
    dog.start()
    assert happened.wait(120)
    dog.stop()
    assert reported == [0.2]
