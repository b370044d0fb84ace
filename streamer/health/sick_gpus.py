"""Tell `streamer doctor` and `/metrics` which GPUs their supervisors have put out of service."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import redis

from streamer import redis_keys

DEVICE_LOST = 3
"""Exit code of a model worker whose device broke down again after all its restarts."""

REPORT_EVERY = 5.0
"""Seconds between two reports of a supervisor."""

_REPORTED_FOR = 30
"""Seconds after which a report counts no more: its supervisor has ended."""


@dataclass(frozen=True)
class SickGpu:
    """A GPU whose model worker failed again and again.

    Attributes:
        host: name of its machine.
        gpu: its UUID or number.
        reason: why, in a sentence.
        since: when it was taken out of service, epoch seconds.
        retry_at: when it is tried again, epoch seconds.
    """

    host: str
    gpu: str
    reason: str
    since: float
    retry_at: float


class SickGpus:
    """The GPUs of an installation that are out of service."""

    def __init__(self, redis: redis.Redis) -> None:
        self._redis = redis

    def report(self, host: str, gpus: Iterable[str], sick: Sequence[SickGpu], now: float) -> None:
        """Report which of `gpus`, those of one supervisor on `host`, are out of service at `now`.

        Raises redis.exceptions.RedisError.
        """
        with self._redis.pipeline() as pipeline:
            pipeline.hdel(redis_keys.SICK_GPUS, *(f"{host} {gpu}" for gpu in gpus))
            for one in sick:
                value = json.dumps(asdict(one) | {"reported_at": now})
                pipeline.hset(redis_keys.SICK_GPUS, f"{host} {one.gpu}", value)
            if sick:
                pipeline.expire(redis_keys.SICK_GPUS, _REPORTED_FOR)
            pipeline.execute()

    def read(self, now: float) -> list[SickGpu]:
        """Return the GPUs that are out of service at `now`, by host and GPU."""
        stored = cast("dict[bytes, bytes]", self._redis.hgetall(redis_keys.SICK_GPUS))
        reports = [json.loads(value) for _, value in sorted(stored.items())]
        return [
            SickGpu(**{name: report[name] for name in SickGpu.__dataclass_fields__})
            for report in reports
            if now - report["reported_at"] < _REPORTED_FOR
        ]
