"""Let a worker of a test take jobs, each step on command."""

from datetime import datetime

from rq import Queue

from workers.rq.executions import Executions, Taken
from workers.rq.job import Slot


def take_next(executions: Executions, queue: Queue, now: datetime, worker: str = "w") -> Slot:
    """Let a worker take the next job of a queue, and return what runs it."""
    taken = executions.take([queue], worker, now)
    assert isinstance(taken, Taken)
    assert taken.slot is not None, taken.reason
    return taken.slot
