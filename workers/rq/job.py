"""A job on its way through a ThreadWorker."""

import threading

from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.timeouts import BaseDeathPenalty


class NoDeathPenalty(BaseDeathPenalty):
    """Jobs watch their own deadlines: a signal or an injected exception cannot end a thread."""

    def setup_death_penalty(self) -> None:
        """Nothing to arm."""

    def cancel_death_penalty(self) -> None:
        """Nothing to disarm."""


class PlainJob(Job):
    """A job without callbacks: they would import and call whatever the job's record names."""

    success_callback = None
    failure_callback = None
    stopped_callback = None


class Slot:
    """One job on its way through this worker."""

    def __init__(self, job: Job, queue: Queue, execution: Execution) -> None:
        self.job = job
        self.queue = queue
        self.execution = execution
        self.cancelled = threading.Event()
        self.stopped = False  # on request: it does not go back to the queue
        self._closed = False
        self._lock = threading.Lock()

    def close(self) -> bool:
        """True for the first caller only: that one decides what becomes of the job."""
        with self._lock:
            first, self._closed = not self._closed, True
            return first
