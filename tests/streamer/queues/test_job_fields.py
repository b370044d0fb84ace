"""What is stored of a job, compared with what RQ stores itself."""

import zlib
from typing import Any

import pytest
from rq import Queue, Retry
from rq.job import Job
from rq.serializers import JSONSerializer

from streamer.queues.job_fields import JobFields

OPTIONS: dict[str, Any] = {"timeout": 120, "result_ttl": 0, "failure_ttl": 3600}
TIMES = (b"created_at", b"enqueued_at")


@pytest.mark.parametrize(
    "argument", [{}, {"prompt": "Wie viele Gäste? 😀 \ud800", "frames": [{"time": 1.5e9}]}], ids=str
)
def test_the_fields_are_those_that_rq_stores(redis_client: Any, argument: dict[str, Any]) -> None:
    # given two queues, one of which RQ itself fills
    fields = JobFields(**OPTIONS)
    for name, retries in (("watches", 2), ("files:a", 1_000_000), ("watches", 1)):
        queue = Queue(name, connection=redis_client, serializer=JSONSerializer)
        queue.enqueue_call(
            "workers.clip.answer",
            args=(argument,),
            description="clip req_1",
            job_id="req_1",
            retry=Retry(max=retries, enqueue_at_front=True),
            **OPTIONS,
        )
        by_rq = redis_client.hgetall("rq:job:req_1")
        redis_client.delete("rq:job:req_1")
        # when the same job is stored by its fields
        words = fields.of(queue, "req_1", "workers.clip.answer", argument, retries)
        redis_client.execute_command("HSET", "rq:job:req_1", *words)
        # then Redis has the same of it, but for the moment
        stored = redis_client.hgetall("rq:job:req_1")
        assert without_times(stored) == without_times(by_rq)
        assert all(len(stored[time]) == len(by_rq[time]) for time in TIMES)
        # and RQ reads it
        job = Job.fetch("req_1", connection=redis_client, serializer=JSONSerializer)
        assert (job.func_name, job.args) == ("workers.clip.answer", [argument])
        assert (job.retries_left, job.timeout) == (retries, 120)
        assert job.created_at == job.enqueued_at


def without_times(stored: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Return the fields of a job with its data unpacked, without the times."""
    data = {b"data": zlib.decompress(stored[b"data"])}
    return {name: stored[name] for name in stored if name not in TIMES} | data
