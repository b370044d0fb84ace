"""Share the streams among the ingest workers, by what each reports about itself.

A stream that waits goes to the worker that it leaves least full: the others let that one take it.
And the fullest worker hands one stream over when another is emptier by two, so that the move cannot
be worth while in the other direction, too. It moves one at a time, after the difference has lasted.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import redis
import structlog
from rq import worker_registration
from rq.queue import Queue

from streamer import redis_keys
from streamer.clock import Clock, SystemClock
from workers.rq.thread_worker import ThreadWorker

_LASTING = 3
"""Looks after which a difference between workers, or the dropping of frames, counts."""

_PATIENCE = 3.0
"""Seconds for which a stream is left to an emptier worker that does not take it."""

_DISTRUST = 30.0
"""Seconds for which nothing is left to others when one did not take what was left to it."""

_STRAINED = 600.0
"""Seconds after its last late frame for which a worker is given no streams of others."""

_FIELDS = ("slots", "slots_busy", "streams", "movable", "strained")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Report:
    """What a worker reports about its load.

    Attributes:
        name: the worker.
        slots: how many streams it can read at once.
        busy: how many slots are taken.
        streams: all streams that it has, those that wait for their cameras too.
        movable: how many of them another worker can continue.
        strained: whether it dropped frames of late, because it decodes too slowly.
    """

    name: str
    slots: int
    busy: int
    streams: int
    movable: int
    strained: bool

    @property
    def takes(self) -> bool:
        """Whether it has a slot to spare."""
        return self.busy < self.slots

    def fullness(self, more: int = 0) -> float:
        """Return the share of its slots that it would need with `more` streams."""
        return (self.streams + more) / self.slots if self.slots else math.inf


class Balance:
    """The view of one worker on all of them; call `defers` before each stream that it takes.

    Args:
        client: the Redis server of the queue.
        queue: the queue of the streams.
        worker: this worker.
        late: returns how many frames it has dropped because it decodes too slowly.
        lease: seconds after which a silent worker is given up.
        interval: seconds between two looks whether to hand a stream over.
        clock: the time.
    """

    def __init__(
        self,
        client: redis.Redis,
        queue: Queue,
        worker: ThreadWorker,
        *,
        late: Callable[[], int],
        lease: float,
        interval: float = 2.0,
        clock: Clock | None = None,
    ) -> None:
        self._redis = client
        self._queue = queue
        self._worker = worker
        self._late = late
        self._ttl = math.ceil(lease)
        self._interval = interval
        self._clock = clock or SystemClock()
        self._looked_at = -math.inf
        self._late_before = 0
        self._late_looks = 0
        self._late_at = -math.inf
        self._uneven_looks = 0
        self._deferring_since: float | None = None
        self._waiting = 0
        self._distrusts_until = -math.inf

    def defers(self) -> bool:
        """Return whether another worker should take the next stream. Now and then, hand over one of
        this worker's."""
        now = self._clock.monotonic()
        own, others, waiting = self._read(now)
        if now - self._looked_at >= self._interval:
            self._looked_at = now
            self._look(now, own, others, waiting)
        if waiting == 0:
            self._deferring_since, self._waiting = None, 0
            # What this worker hands over is not in the queue yet: it must not take it back.
            return self._worker.load().leaving > 0
        return own.takes and self._leaves_it(now, own, others, waiting)

    def _read(self, now: float) -> tuple[Report, list[Report], int]:
        """Report the load of this worker; return it, that of the others, and how many streams
        wait."""
        load = self._worker.load()
        own = Report(
            self._worker.name,
            load.slots,
            load.busy,
            load.jobs,
            load.movable,
            now - self._late_at < _STRAINED,
        )
        key = redis_keys.worker(own.name)
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.hset(key, items=_items(own))
            pipeline.expire(key, self._ttl)
            pipeline.smembers(worker_registration.WORKERS_BY_QUEUE_KEY % self._queue.name)
            pipeline.llen(self._queue.key)
            # A full server refuses the report: streams are taken all the same.
            *_, members, waiting = pipeline.execute(raise_on_error=False)
        for answer in (members, waiting):
            if isinstance(answer, Exception):
                raise answer
        names = [member.decode().rpartition(":")[2] for member in members]
        others = [name for name in names if name != own.name]
        if not others:
            return own, [], waiting
        with self._redis.pipeline(transaction=False) as pipeline:
            for name in others:
                pipeline.hmget(redis_keys.worker(name), _FIELDS)
            found = cast("list[list[bytes | None]]", pipeline.execute())
        reports = map(_parsed, others, found)
        return own, [report for report in reports if report is not None], waiting

    def _leaves_it(self, now: float, own: Report, others: Sequence[Report], waiting: int) -> bool:
        """Return whether the next stream is left to another worker, which has time to take it."""
        mine = (own.strained, own.fullness(1))
        better = any(each.takes and (each.strained, each.fullness(1)) < mine for each in others)
        if not better:
            self._deferring_since = None
            return False
        if now < self._distrusts_until:
            return False
        taken, self._waiting = waiting < self._waiting, waiting
        if self._deferring_since is None:
            self._deferring_since = now
            self._wake_another()
        elif taken:
            self._deferring_since = now
        elif now - self._deferring_since > _PATIENCE:
            self._deferring_since, self._distrusts_until = None, now + _DISTRUST
            return False
        return True

    def _wake_another(self) -> None:
        """Pass the wake-up on that this worker may have got."""
        key = redis_keys.wake(self._queue.name)
        with self._redis.pipeline() as pipeline:
            pipeline.lpush(key, 1)
            pipeline.expire(key, 60)
            with contextlib.suppress(redis.exceptions.ResponseError):  # the server is full
                pipeline.execute()

    def _look(self, now: float, own: Report, others: Sequence[Report], waiting: int) -> None:
        total = self._late()
        late, self._late_before = total - self._late_before, total
        self._late_looks = self._late_looks + 1 if late > 0 else 0
        strained = self._late_looks >= _LASTING
        if strained:
            self._late_at = now
        room = [each for each in others if each.takes]
        takers = [each for each in room if not each.strained]
        uneven = self._is_uneven(own, others, takers)
        self._uneven_looks = self._uneven_looks + 1 if uneven else 0
        if waiting:
            return  # what was handed over has not been taken yet
        if room and self._worker.load().wanting:
            reason = "it waits for a slot"
        elif takers and strained and own.streams > 1:
            reason = "this worker drops frames"
            self._late_looks = 0  # let it show whether that helped
        elif self._uneven_looks >= _LASTING:
            reason = "another worker has fewer"
        else:
            return
        job_id = self._worker.hand_over()
        if job_id is not None:
            _log.info("stream_handed_over", job=job_id, reason=reason)

    @staticmethod
    def _is_uneven(own: Report, others: Sequence[Report], takers: Sequence[Report]) -> bool:
        """Return whether this worker is the one to hand a stream over, to even the load out."""
        if any(each.strained and each.movable for each in others) and not own.strained:
            return False  # it needs the room more
        givers = [each for each in (own, *others) if each.movable]
        fullest = max(givers, key=lambda each: (each.fullness(), each.name), default=None)
        emptiest = min(takers, key=Report.fullness, default=None)
        if fullest is not own or emptiest is None:
            return False
        return own.fullness(-1) >= emptiest.fullness(1)


def _items(report: Report) -> list[str | int]:
    numbers = (report.slots, report.busy, report.streams, report.movable, int(report.strained))
    return [item for pair in zip(_FIELDS, numbers, strict=True) for item in pair]


def _parsed(name: str, fields: Sequence[bytes | None]) -> Report | None:
    """Return a worker's report; None for one that is gone, or of a release without reports."""
    try:
        slots, busy, streams, movable, strained = (round(float(field or b"")) for field in fields)
    except ValueError:
        return None
    return Report(name, slots, busy, streams, movable, bool(strained))
