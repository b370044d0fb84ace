"""Take over the jobs of dead workers: every worker does it now and then, one at a time.

RQ's own clean-up of registries is not used: it reads which executions have expired and removes them
in a later step, by the clock of the worker. One that was renewed in between was started twice.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import cast

import redis
import structlog
from rq import worker_registration
from rq.exceptions import AbandonedJobError, NoSuchJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.queue import Queue

from streamer.clock import Clock, SystemClock
from streamer.domain.timestamp import to_datetime
from streamer.errors import ErrorCode
from workers.rq.executions import Executions

_log = structlog.get_logger(__name__)

OnFailed = Callable[[Job, ErrorCode, str], None]
"""Called, possibly more than once, when a job has failed for good: its request needs a result."""

_MAX_REPORTED = 200
_REPORT_WITHIN = 3600.0  # seconds for which a request remembers that it has a result
# It deletes first: then a full server allows the script to write.
# KEYS: job. ARGV: id of its result
_NOTE_REPORTED = """
if redis.call('EXISTS', KEYS[1]) == 0 then return end
redis.call('HDEL', KEYS[1], 'reported')
redis.call('HSET', KEYS[1], 'reported', ARGV[1])
"""
_LOST = "The workers that ran this request died: see their logs, then ask again."


class Maintenance:
    """Maintains queues about three times in each lease.

    Args:
        connection: the Redis server of the queues.
        queues: the queues to maintain.
        executions: the executions of their jobs.
        lease: seconds after which a silent worker is given up.
        idle: seconds that may pass between two calls of `tick` when all is well.
        on_failed: called with each job that was given up after its retries.
        job_class: the class of the jobs.
        sweep: further maintenance of the program.
        clock: the time; a test moves it by hand.
    """

    def __init__(
        self,
        connection: redis.Redis,
        queues: Sequence[Queue],
        executions: Executions,
        *,
        lease: float,
        idle: float,
        on_failed: OnFailed,
        job_class: type[Job],
        sweep: Callable[[], object] = lambda: None,
        clock: Clock | None = None,
    ) -> None:
        self._redis = connection
        self._queues = queues
        self._lease = lease
        self._on_failed = on_failed
        self._job_class = job_class
        self._sweep = sweep
        self._idle = idle
        self._executions = executions
        self._clock = clock or SystemClock()
        self._ticked_at = self._clock.monotonic()
        self._done_at = -math.inf
        self._in_between: dict[str, dict[str, float]] = {}
        self._reported: dict[str, set[str]] = {}
        self._note_reported = connection.register_script(_NOTE_REPORTED)

    def postpone(self) -> None:
        """Take nothing over within a lease from now: after an outage, workers that live report
        first."""
        self._done_at = self._clock.monotonic() + self._lease * 2 / 3

    def tick(self) -> None:
        """Do what is due, unless another worker is doing it."""
        now, ticked_at = self._clock.monotonic(), self._ticked_at
        self._ticked_at = now
        if now - ticked_at > self._idle + self._lease / 3:
            self.postpone()  # Redis was silent, or this process frozen: others may have been, too
        if self._clock.monotonic() - self._done_at < self._lease / 3:
            return
        self._done_at = self._clock.monotonic()
        self._sweep()
        for queue in self._queues:
            lock = queue.registry_cleaning_key
            # The lock of a holder that dies expires as soon as its jobs may be taken over.
            if not self._redis.set(lock, 1, nx=True, ex=math.ceil(self._lease)):
                continue
            try:
                self._abandon(queue)
                worker_registration.clean_worker_registry(queue)
                self._recover_intermediate(queue)
                self._report_lost(queue)
            finally:
                self._redis.delete(lock)

    def _abandon(self, queue: Queue) -> None:
        abandoned = self._executions.abandon(queue, to_datetime(self._clock.time()))
        if abandoned is None:
            self.postpone()  # until the workers that live have renewed by the new time
        for job in abandoned or ():
            _log.warning("job_abandoned", job=job.job_id, worker=job.worker, retried=job.retried)

    def _recover_intermediate(self, queue: Queue) -> None:
        """Put back jobs of the intermediate list, in which they stay for milliseconds unless their
        worker dies."""
        now = self._clock.monotonic()
        before = self._in_between.get(queue.name, {})
        ids = IntermediateQueue(queue.key, self._redis).get_job_ids()
        seen = {job_id: before.get(job_id, now) for job_id in ids}
        for job_id in [job_id for job_id, since in seen.items() if now - since >= self._lease / 4]:
            _log.warning("job_recovered", job=job_id)
            self._executions.recover(queue, job_id)
            del seen[job_id]
        self._in_between[queue.name] = seen

    def _report_lost(self, queue: Queue) -> None:
        """Report the jobs that were given up after their retries, here or elsewhere.

        Reading a registry, as `rq info` does, makes RQ clean it. So the records count, not the jobs
        that this process happened to give up. A job notes that its failure was reported, so that a
        worker that starts reports no old ones.
        """
        failed = queue.failed_job_registry
        newest = cast(list[bytes], self._redis.zrevrange(failed.key, 0, _MAX_REPORTED))
        ids = {job_id.decode() for job_id in newest}
        for job_id in ids - self._reported.get(queue.name, set()):
            with contextlib.suppress(NoSuchJobError):
                job = self._job_class.fetch(job_id, self._redis, queue.serializer)
                result = job.latest_result()
                if result is None or AbandonedJobError.__name__ not in (result.exc_string or ""):
                    continue
                reported = cast(bytes | None, self._redis.hget(job.key, "reported")) or b""
                late = self._clock.time() - result.created_at.timestamp() > _REPORT_WITHIN
                if late or reported.decode() == result.id:
                    continue
                _log.error("job_lost", job=job.id)
                self._on_failed(job, ErrorCode.WORKER_LOST, _LOST)
                self._note_reported(keys=[job.key], args=[result.id or ""])
        self._reported[queue.name] = ids
