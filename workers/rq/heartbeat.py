"""Renew the lease of a worker, and of the jobs that it runs, in a thread."""

import math
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

import redis
import structlog
from rq import worker_registration
from rq.worker import BaseWorker, WorkerStatus

from streamer import redis_keys
from streamer.clock import Clock
from streamer.queues.jobs import INGEST
from streamer.redis_client.outage import Outage
from workers.process.process_stats import read_process_stats
from workers.rq.executions import Executions
from workers.rq.job import Slot

_log = structlog.get_logger(__name__)


class Heartbeat:
    """Reports three times in each lease that a worker is alive, and what it runs.

    A job that another worker has taken over meanwhile, because this one was silent for too long,
    is cancelled here.

    Args:
        worker: the worker to report.
        executions: renews the leases.
        slots: returns the jobs that run.
        slot_count: how many jobs may run at once.
        lease: seconds after which a silent worker is given up.
        measure: returns what to report beside the numbers of the process.
        outage: what Redis refuses at the moment.
        clock: the time.
    """

    def __init__(
        self,
        worker: BaseWorker,
        executions: Executions,
        slots: Callable[[], Collection[Slot]],
        *,
        slot_count: int,
        lease: float,
        measure: Callable[[], Mapping[str, float | str]],
        outage: Outage,
        clock: Clock,
    ) -> None:
        self._worker = worker
        self._executions = executions
        self._clock = clock
        self._redis = worker.connection
        self._slots = slots
        self._slot_count = slot_count
        self._lease = lease
        self._measure = measure
        self._outage = outage
        self._stats_key = redis_keys.worker(worker.name)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.ended = threading.Event()

    @property
    def ttl(self) -> int:
        """The lease in whole seconds, as Redis and RQ take it."""
        return math.ceil(self._lease)

    def start(self) -> None:
        """Beat once, then continue in a thread. Raises redis.RedisError if the first beat fails."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Stop beating."""
        self.ended.set()
        self._thread.join(timeout=2.0)

    def retire(self) -> None:
        """Report that this worker takes no more jobs."""
        self._slot_count = 0
        self._redis.hset(self._stats_key, "slots", 0)
        self._redis.expire(self._stats_key, self.ttl)

    def forget(self) -> None:
        """Delete what was reported about the worker."""
        self._redis.delete(self._stats_key)

    def _run(self) -> None:
        while not self.ended.wait(self._lease / 3):
            try:
                self._beat()
            except redis.exceptions.RedisError as error:
                self._outage.failed("heartbeat", error)
            else:
                self._outage.worked("heartbeat")

    def _beat(self) -> None:
        slots = list(self._slots())
        # First and alone: a full server that refuses the report still lets leases be renewed.
        for slot, held in zip(slots, self._executions.renew(self._worker, slots), strict=True):
            if not held and slot.close():
                _log.warning("job_taken_over", job=slot.job.id)
                slot.cancelled.set()
        self._report(slots)

    def _report(self, slots: Collection[Slot]) -> None:
        worker = self._worker
        with self._redis.pipeline() as pipeline:
            worker.heartbeat(pipeline=pipeline)
            worker.set_state(WorkerStatus.BUSY if slots else WorkerStatus.IDLE, pipeline)
            self._report_stats(pipeline, busy=sum(not slot.resting for slot in slots))
            kind = "ingest worker" if INGEST in worker.queue_names() else "model worker"
            pipeline.hset(redis_keys.LAST_SEEN, kind, self._clock.time())
            answers = pipeline.execute()
            if answers[0]:  # this command created the hash again: the worker had been given up
                pipeline.hset(worker.key, mapping=worker.serialize())
                pipeline.expire(worker.key, self.ttl)
                worker_registration.register(worker, pipeline)
                pipeline.execute()

    def _report_stats(self, pipeline: redis.client.Pipeline, busy: int) -> None:
        numbers: dict[Any, Any] = {"slots": self._slot_count, "slots_busy": busy}
        try:
            numbers |= read_process_stats() | dict(self._measure())
        except Exception as error:  # statistics must not cost the heartbeat
            _log.warning("vitals_failed", reason=type(error).__name__)
        pipeline.hset(self._stats_key, mapping=numbers)
        pipeline.expire(self._stats_key, self.ttl)
