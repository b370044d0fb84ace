"""The lease of a worker and of the jobs that it runs, renewed by a thread of its own."""

import math
import threading
from collections.abc import Callable, Collection, Mapping
from typing import Any

import redis
import structlog
from rq import worker_registration
from rq.worker import BaseWorker, WorkerStatus

from streamer import redis_keys
from streamer.media.urls import redact
from workers.process import process_stats as vitals
from workers.rq.job import Slot

_log = structlog.get_logger(__name__)


class Heartbeat:
    """Says three times in each `lease` (seconds) that `worker` lives, and what it runs.

    `slots` gives the jobs in hand. One that another worker has taken over meanwhile, because we
    were silent for too long, is cancelled here. `measure` gives numbers that are told each time,
    beside those of the process.
    """

    def __init__(
        self,
        worker: BaseWorker,
        slots: Callable[[], Collection[Slot]],
        *,
        slot_count: int,
        lease: float,
        measure: Callable[[], Mapping[str, float]],
    ) -> None:
        self._worker = worker
        self._redis = worker.connection
        self._slots = slots
        self._slot_count = slot_count
        self._lease = lease
        self._measure = measure
        self._vitals_key = redis_keys.worker(worker.name)
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self.ended = threading.Event()

    @property
    def ttl(self) -> int:
        """The lease in whole seconds: what Redis and RQ are told."""
        return math.ceil(self._lease)

    def start(self) -> None:
        """Beat once, then go on in a thread. Raises redis.RedisError when the first one fails."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self.ended.set()
        self._thread.join(timeout=2.0)

    def forget(self) -> None:
        """Take back what was told of the worker."""
        self._redis.delete(self._vitals_key)

    def _run(self) -> None:
        while not self.ended.wait(self._lease / 3):
            try:
                self._beat()
            except redis.exceptions.RedisError as error:
                _log.warning("heartbeat_failed", reason=redact(str(error)))

    def _beat(self) -> None:
        slots = list(self._slots())
        worker = self._worker
        with self._redis.pipeline() as pipeline:
            worker.heartbeat(pipeline=pipeline)
            worker.set_state(WorkerStatus.BUSY if slots else WorkerStatus.IDLE, pipeline)
            held_at = {}
            for slot in slots:
                registry = slot.queue.started_job_registry
                slot.execution.heartbeat(registry, self.ttl, pipeline)
                held_at[slot] = len(pipeline)
                pipeline.zscore(registry.key, slot.execution.composite_key)
            self._tell_vitals(pipeline, busy=len(slots))
            answers = pipeline.execute()
            if answers[0]:  # the hash was created by this very command: we had been given up
                pipeline.hset(worker.key, mapping=worker.serialize())
                pipeline.expire(worker.key, self.ttl)
                worker_registration.register(worker, pipeline)
                pipeline.execute()
        for slot, index in held_at.items():
            if answers[index] is None and slot.close():
                _log.warning("job_taken_over", job=slot.job.id)
                slot.cancelled.set()

    def _tell_vitals(self, pipeline: redis.client.Pipeline, busy: int) -> None:
        numbers: dict[Any, Any] = {"slots": self._slot_count, "slots_busy": busy}
        try:
            numbers |= vitals.of_this_process() | dict(self._measure())
        except Exception as error:  # what is only looked at must not cost the heartbeat
            _log.warning("vitals_failed", reason=type(error).__name__)
        pipeline.hset(self._vitals_key, mapping=numbers)
        pipeline.expire(self._vitals_key, self.ttl)
