"""What workers do about the jobs of those that died."""

import time

import pytest
import redis
from rq import Queue
from rq.serializers import JSONSerializer
from structlog.testing import capture_logs

from streamer.domain.timestamp import to_datetime
from tests.support.queues import take_next
from workers.rq.executions import Executions
from workers.rq.job import PlainJob
from workers.rq.maintenance import Maintenance

LEASE = 3


@pytest.fixture
def queue(redis_client: redis.Redis) -> Queue:
    return Queue("queries", connection=redis_client, serializer=JSONSerializer)


def give_up(queue: Queue) -> None:
    """Let a worker take the next job of `queue` and die; the job has no retries."""
    connection = queue.connection
    executions = Executions(connection, LEASE)
    now = to_datetime(time.time())
    slot = take_next(executions, queue, now)
    connection.zadd(queue.started_job_registry.key, {slot.execution.composite_key: 1}, xx=True)
    connection.delete(slot.execution.key)
    assert executions.abandon(queue, now)


def tick_of_a_new_worker(queue: Queue) -> list[str]:
    """Return what a worker that has just started reports, and logs, as failed."""
    reported: list[str] = []
    with capture_logs() as logs:
        Maintenance(
            queue.connection,
            [queue],
            Executions(queue.connection, LEASE),
            lease=LEASE,
            idle=1.0,
            on_failed=lambda job, code, _: reported.append(f"{job.id} {code.value}"),
            job_class=PlainJob,
        ).tick()
    logged = [f"{line['job']} {line['event']}" for line in logs if line["log_level"] == "error"]
    assert logged == [line.replace("WORKER_LOST", "job_lost") for line in reported]
    return reported


def test_each_failure_of_a_job_is_reported_once_however_many_workers_start(queue: Queue) -> None:
    queue.enqueue_call("f", job_id="j")
    give_up(queue)
    assert tick_of_a_new_worker(queue) == ["j WORKER_LOST"]
    assert tick_of_a_new_worker(queue) == []
    # when the same job runs again and its worker dies again
    queue.failed_job_registry.requeue("j")
    give_up(queue)
    assert tick_of_a_new_worker(queue) == ["j WORKER_LOST"]
    assert tick_of_a_new_worker(queue) == []


def test_a_failure_whose_report_did_not_end_is_reported_again(queue: Queue) -> None:
    queue.enqueue_call("f", job_id="j")
    give_up(queue)
    maintenance = Maintenance(
        queue.connection,
        [queue],
        Executions(queue.connection, LEASE),
        lease=LEASE,
        idle=1.0,
        on_failed=lambda *_: queue.connection.execute_command("NOSUCHCOMMAND"),
        job_class=PlainJob,
    )
    with pytest.raises(redis.exceptions.ResponseError):
        maintenance.tick()

    assert tick_of_a_new_worker(queue) == ["j WORKER_LOST"]
