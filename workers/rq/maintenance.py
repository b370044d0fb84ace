"""Taking over what dead workers left: every worker does it, now and then, one at a time."""

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import cast

import redis
import structlog
from rq import worker_registration
from rq.exceptions import AbandonedJobError, NoSuchJobError
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job
from rq.queue import Queue
from rq.registry import clean_registries

from streamer.errors import ErrorCode

_log = structlog.get_logger(__name__)

OnFailed = Callable[[Job, ErrorCode, str], None]
"""Called, perhaps more than once, when a job has failed for good: its request needs a result."""

_MOST_REPORTED = 200
_REPORT_WITHIN = 3600.0  # seconds: for as long a request remembers that it has its result
_LOST = "The workers that ran this request died: see their logs, then ask again."

# KEYS: intermediate, queue. ARGV: job id
_PUT_BACK = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
return redis.call('LPUSH', KEYS[2], ARGV[1])
"""


class Maintenance:
    """Looks after `queues` about three times in each `lease` (seconds)."""

    def __init__(
        self,
        connection: redis.Redis,
        queues: Sequence[Queue],
        *,
        lease: float,
        on_failed: OnFailed,
        job_class: type[Job],
    ) -> None:
        self._redis = connection
        self._queues = queues
        self._lease = lease
        self._on_failed = on_failed
        self._job_class = job_class
        self._put_back = connection.register_script(_PUT_BACK)
        self._done_at = -math.inf
        self._in_between: dict[str, dict[str, float]] = {}
        self._reported: dict[str, set[str]] = {}

    def tick(self) -> None:
        """Do what is due, unless another worker is at it."""
        if time.monotonic() - self._done_at < self._lease / 3:
            return
        self._done_at = time.monotonic()
        for queue in self._queues:
            lock = queue.registry_cleaning_key
            # if its holder dies it is gone as soon as the holder's jobs may be taken over
            if not self._redis.set(lock, 1, nx=True, ex=math.ceil(self._lease)):
                continue
            try:
                clean_registries(queue, [_tell])
                worker_registration.clean_worker_registry(queue)
                self._recover_intermediate(queue)
                self._report_lost(queue)
            finally:
                self._redis.delete(lock)

    def _recover_intermediate(self, queue: Queue) -> None:
        """Jobs stay there for milliseconds, unless their worker died in between."""
        now = time.monotonic()
        before = self._in_between.get(queue.name, {})
        ids = IntermediateQueue(queue.key, self._redis).get_job_ids()
        seen = {job_id: before.get(job_id, now) for job_id in ids}
        for job_id in [job_id for job_id, since in seen.items() if now - since >= self._lease / 4]:
            _log.warning("job_recovered", job=job_id)
            self._put_back(keys=[queue.intermediate_queue_key, queue.key], args=[job_id])
            del seen[job_id]
        self._in_between[queue.name] = seen

    def _report_lost(self, queue: Queue) -> None:
        """Tell of jobs that were given up after their retries, whoever gave them up.

        Merely looking at a registry, as `rq info` does, makes RQ clean it. So this goes by what was
        written down, not by what happened to pass through our own hands.
        """
        failed = queue.failed_job_registry
        newest = cast(list[bytes], self._redis.zrevrange(failed.key, 0, _MOST_REPORTED))
        ids = {job_id.decode() for job_id in newest}
        for job_id in ids - self._reported.get(queue.name, set()):
            with contextlib.suppress(NoSuchJobError):
                job = self._job_class.fetch(job_id, self._redis, queue.serializer)
                result = job.latest_result()
                if result is None or AbandonedJobError.__name__ not in (result.exc_string or ""):
                    continue
                if time.time() - result.created_at.timestamp() < _REPORT_WITHIN:
                    _log.error("job_lost", job=job.id)
                    self._on_failed(job, ErrorCode.WORKER_LOST, _LOST)
        self._reported[queue.name] = ids


def _tell(job: Job, kind: type[BaseException], *_: object) -> None:
    """RQ calls this for each job of a dead worker, before it retries it or gives it up."""
    if kind is AbandonedJobError:
        _log.warning("job_abandoned", job=job.id, worker=job.worker_name)
