"""What RQ needs to know of the jobs of a ThreadWorker, and the slot that runs one."""

import threading
import zlib
from datetime import datetime
from typing import Any

from rq.executions import Execution
from rq.job import Job
from rq.queue import Queue
from rq.timeouts import BaseDeathPenalty

from streamer.limits import MAX_JOB_BYTES


class NoDeathPenalty(BaseDeathPenalty):
    """No time-out by RQ: a signal or an injected exception cannot end a thread, so jobs watch their
    own deadlines."""

    def setup_death_penalty(self) -> None:
        """Do nothing."""

    def cancel_death_penalty(self) -> None:
        """Do nothing."""


class PlainJob(Job):
    """A job without callbacks, which would import and call any function that its record names.

    Attributes:
        too_large: whether it has more than MAX_JOB_BYTES, and was therefore not read.
    """

    success_callback = None
    failure_callback = None
    stopped_callback = None
    too_large = False

    def restore(self, raw_data: Any) -> Any:
        """Read the record of the job, but not the call in it if that is too large."""
        record = dict(raw_data)
        data = _unpacked(record.get(b"data", b""))
        if len(data) > MAX_JOB_BYTES:
            self.too_large = True
            record[b"data"] = b"too large"  # no call: running it fails
        elif data.startswith(b"["):  # JSON, which RQ cannot unpack a second time
            record[b"data"] = data
        return super().restore(record)


def _unpacked(data: bytes) -> bytes:
    """Return compressed or plain data, or its first bytes if it has more than MAX_JOB_BYTES."""
    try:
        return zlib.decompressobj().decompress(data, MAX_JOB_BYTES + 1)
    except zlib.error:
        return data


class Slot:
    """One job that this worker runs.

    Attributes:
        job, queue, execution: RQ's records of it.
        token: what shows that this worker still owns the job; each taking of a job gets a higher
            one than all before.
        cancelled: set when the job should stop.
        stopped: whether a user stopped it, so that it does not return to the queue.
        resting: whether the job waits without a slot.
        wanting: whether it rests only because no slot is free.
        movable: whether another worker can continue the job.
        ended: whether the end of the job has been recorded with its last step.
        first_attempt: whether no worker has begun the job before.
        wait: seconds that the last job of its queue was expected to wait when this one was taken.
    """

    def __init__(self, job: Job, queue: Queue, execution: Execution, token: int) -> None:
        self.job = job
        self.queue = queue
        self.execution = execution
        self.token = token
        self.cancelled = threading.Event()
        self.stopped = False
        self.resting = False
        self.wanting = False
        self.movable = False
        self.ended = False
        self.first_attempt = False
        self.wait = 0.0
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
