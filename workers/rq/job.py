"""What RQ needs to know of the jobs of a ThreadWorker, and the slot that runs one."""

import threading
from datetime import datetime

from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.timeouts import BaseDeathPenalty


class NoDeathPenalty(BaseDeathPenalty):
    """No time-out by RQ: a signal or an injected exception cannot end a thread, so jobs watch their
    own deadlines."""

    def setup_death_penalty(self) -> None:
        """Do nothing."""

    def cancel_death_penalty(self) -> None:
        """Do nothing."""


class PlainJob(Job):
    """A job without callbacks: they would import and call any function that its record names."""

    success_callback = None
    failure_callback = None
    stopped_callback = None


class Slot:
    """One job that this worker runs.

    Attributes:
        job, queue, execution: RQ's records of it.
        token: what shows that this worker still owns the job; each taking of a job gets a higher
            one than all before.
        cancelled: set when the job should stop.
        stopped: whether a user stopped it, so that it does not return to the queue.
        resting: whether the job waits without a slot.
    """

    def __init__(self, job: Job, queue: Queue, execution: Execution, token: int) -> None:
        self.job = job
        self.queue = queue
        self.execution = execution
        self.token = token
        self.cancelled = threading.Event()
        self.stopped = False
        self.resting = False
        self._closed = False
        self._lock = threading.Lock()

    def close(self) -> bool:
        """Return True for the first caller only: that one decides what happens to the job."""
        with self._lock:
            first, self._closed = not self._closed, True
            return first

    def seconds_until(self, now: datetime) -> float:
        """Return how long the job has run at `now`."""
        return (now - self.job.started_at).total_seconds() if self.job.started_at else 0.0
