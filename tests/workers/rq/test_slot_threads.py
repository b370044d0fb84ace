"""`SlotThreads` runs each call in a thread of its own, and uses idle threads again."""

import contextvars
import threading
import weakref
from collections.abc import Callable, Iterator

import pytest

from workers.rq.slot_threads import SlotThreads

Eventually = Callable[..., None]

VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def threads() -> Iterator[SlotThreads]:
    made = SlotThreads(most=2)
    yield made
    made.close()


def thread_of_a_call(threads: SlotThreads, eventually: Eventually) -> threading.Thread:
    """Return the thread that ran a call, once it is idle."""
    ran: list[threading.Thread] = []
    threads.start("slot-job", lambda: ran.append(threading.current_thread()))
    eventually(lambda: ran)
    eventually(lambda: not ran[0].is_alive() or ran[0].name == "slot")
    return ran[0]


class Blocked:
    """Makes calls that run until `go` is set."""

    def __init__(self, threads: SlotThreads, eventually: Eventually, count: int) -> None:
        self.go = threading.Event()
        self.running: list[threading.Thread] = []
        for number in range(count):
            threads.start(f"slot-{number}", self._call)
        eventually(lambda: len(self.running) == count)

    def _call(self) -> None:
        self.running.append(threading.current_thread())
        self.go.wait()


def test_calls_run_at_the_same_time_each_in_a_thread_with_its_name(
    threads: SlotThreads, eventually: Eventually
) -> None:
    blocked = Blocked(threads, eventually, 5)

    assert {thread.name for thread in blocked.running} == {f"slot-{n}" for n in range(5)}
    assert all(thread.daemon for thread in blocked.running)

    blocked.go.set()


def test_an_idle_thread_runs_the_next_call(threads: SlotThreads, eventually: Eventually) -> None:
    def ran() -> threading.Thread:
        return thread_of_a_call(threads, eventually)

    eventually(lambda: ran() is ran())


def test_no_more_idle_threads_are_kept_than_wanted(
    threads: SlotThreads, eventually: Eventually
) -> None:
    blocked = Blocked(threads, eventually, 5)
    blocked.go.set()
    eventually(lambda: sum(thread.is_alive() for thread in blocked.running) == 2)


def test_a_call_finds_no_context_variables_of_an_earlier_one(
    threads: SlotThreads, eventually: Eventually
) -> None:
    found: list[str] = []

    def look_and_set() -> None:
        found.append(VARIABLE.get())
        VARIABLE.set("set")

    for _ in range(3):
        threads.start("slot-job", look_and_set)
    eventually(lambda: len(found) == 3)
    assert found == ["unset"] * 3


def test_an_idle_thread_holds_nothing_of_its_last_call(
    threads: SlotThreads, eventually: Eventually
) -> None:
    class Job:
        def run(self) -> None:
            pass

    def start() -> Callable[[], Job | None]:
        job = Job()
        threads.start("slot-job", job.run)
        return weakref.ref(job)

    held = start()
    eventually(lambda: held() is None)


def test_a_call_that_fails_ends_its_thread_and_no_other_call(
    threads: SlotThreads, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    failures: list[object] = []
    monkeypatch.setattr(threading, "excepthook", failures.append)
    threads.start("slot-job", lambda: 1 // 0)  # type: ignore[arg-type]
    eventually(lambda: failures)
    assert thread_of_a_call(threads, eventually).name == "slot"


def test_closing_ends_every_thread(threads: SlotThreads, eventually: Eventually) -> None:
    idle = thread_of_a_call(threads, eventually)
    blocked = Blocked(threads, eventually, 3)
    threads.close()
    blocked.go.set()
    for thread in (idle, *blocked.running):
        thread.join(30)
        assert not thread.is_alive()
