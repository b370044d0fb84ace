"""Isolation: which requests use the engine at once."""

import threading
from contextlib import ExitStack

import pytest

from workers.isolation import Isolation

LONG = 120.0


class Visitor(threading.Thread):
    """Enters in a thread and stays until `leave` is set."""

    def __init__(self, isolation, alone=False):
        super().__init__(daemon=True)
        self.isolation, self.alone = isolation, alone
        self.inside, self.leave, self.waiting = (threading.Event() for _ in range(3))
        self.start()

    def run(self):
        with self.isolation.enter(self.alone, self.waiting.set):
            self.inside.set()
            self.leave.wait(LONG)


@pytest.fixture
def visit():
    isolation = Isolation()
    with ExitStack() as stack:

        def enter(**kwargs):
            visitor = Visitor(isolation, **kwargs)
            stack.callback(visitor.join, LONG)
            stack.callback(visitor.leave.set)
            return visitor

        yield enter


def test_requests_share_the_engine(visit):
    visitors = [visit() for _ in range(4)]
    assert all(visitor.inside.wait(LONG) for visitor in visitors)


def test_a_suspect_waits_for_the_others_and_they_wait_for_it(visit):
    # given a request inside
    first = visit()
    assert first.inside.wait(LONG)
    # when a suspect arrives, and then another request
    suspect = visit(alone=True)
    assert suspect.waiting.wait(LONG)
    after = visit()
    assert after.waiting.wait(LONG)
    assert not suspect.inside.is_set()
    # then the suspect is next, although the engine could be shared, and then the other
    first.leave.set()
    assert suspect.inside.wait(LONG)
    after.waiting.clear()
    assert after.waiting.wait(LONG)
    assert not after.inside.is_set()
    suspect.leave.set()
    assert after.inside.wait(LONG)


def test_suspects_enter_one_by_one(visit):
    suspects = [visit(alone=True) for _ in range(3)]
    for _ in suspects:
        (inside,) = wait_for_one(suspects)
        inside.leave.set()
        inside.join(LONG)
        suspects = [suspect for suspect in suspects if suspect is not inside]


def wait_for_one(suspects):
    pause = threading.Event()
    for _ in range(int(LONG / 0.02)):
        if inside := [suspect for suspect in suspects if suspect.inside.is_set()]:
            return inside
        pause.wait(0.02)
    raise AssertionError("no suspect entered")


def test_a_suspect_that_stops_waiting_blocks_no_other(visit):
    # given a request inside and a suspect that gives up
    first = visit()
    assert first.inside.wait(LONG)

    def give_up():
        raise TimeoutError

    with pytest.raises(TimeoutError), first.isolation.enter(True, give_up):
        pass
    # then others enter at once
    assert visit().inside.wait(LONG)


def test_a_failure_inside_frees_the_place(visit):
    isolation = visit().isolation
    with pytest.raises(RuntimeError), isolation.enter(False, lambda: None):
        raise RuntimeError
    assert visit().inside.wait(LONG)
