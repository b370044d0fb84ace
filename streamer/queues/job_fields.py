"""The fields that RQ stores of a job, without an RQ job for each."""

import json
import zlib
from functools import lru_cache
from typing import Any

from rq import Queue, Retry
from rq.job import Job, JobStatus
from rq.utils import utcformat

from streamer.domain.timestamp import utc_now

_OWN = ("created_at", "enqueued_at", "data", "description")
"""Fields that differ between the jobs of one function in one queue."""


class JobFields:
    """Returns what `Queue.enqueue_call` stores of a job that answers a request.

    RQ makes an object for each job and asks it for each field, which takes longer than Redis takes
    to store them. Most fields are the same for all jobs of one function in one queue: these are
    taken from one job that RQ makes.

    Args:
        timeout: seconds that a job may take.
        result_ttl, failure_ttl: seconds for which a job is kept that has ended or failed.
    """

    def __init__(self, *, timeout: int, result_ttl: int, failure_ttl: int) -> None:
        self._options: dict[str, Any] = {
            "timeout": timeout,
            "result_ttl": result_ttl,
            "failure_ttl": failure_ttl,
        }
        # bounded, because a request may name any model and so any queue
        self._common_of = lru_cache(maxsize=64)(self._made_by_rq)

    def of(
        self, queue: Queue, request_id: str, function: str, argument: dict[str, Any], retries: int
    ) -> list[Any]:
        """Return names and values, one after the other, as HSET takes them.

        Args:
            queue: where the job will wait; it stores jobs as JSON.
            request_id: the id of the job.
            function: the name of the function that answers the request.
            argument: what it is called with.
            retries: how often the job is retried.
        """
        now = utcformat(utc_now())
        data = json.dumps((function, None, (argument,), {})).encode()  # as RQ's JSONSerializer does
        own = (now, now, zlib.compress(data), f"clip {request_id}")
        words = [*self._common_of(queue, function, retries)]
        for pair in zip(_OWN, own, strict=True):
            words += pair
        return words

    def _made_by_rq(self, queue: Queue, function: str, retries: int) -> list[Any]:
        retry = Retry(max=retries, enqueue_at_front=True)
        job: Job = queue.create_job(function, retry=retry, **self._options)
        job.origin = queue.name
        fields = {**job.to_dict(), "status": JobStatus.QUEUED.value}
        return [word for name in fields if name not in _OWN for word in (name, fields[name])]
