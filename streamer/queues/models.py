"""The models of an installation: their queues, the workers that serve them, and past ones."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import redis
from rq import Queue, worker_registration

from streamer import redis_keys
from streamer.clock import shared
from streamer.domain.kinds import RequestKind
from streamer.errors import ErrorCode, StreamerError
from streamer.limits import MAX_MODEL_NAME

QUERIES, WATCHES, FILES = "queries", "watches", "files"
CLIP_QUEUES = (QUERIES, WATCHES, FILES)
"""By priority: queries (a person waits), watches of cameras, then recordings."""

_QUEUE_OF = {
    RequestKind.QUERY: QUERIES,
    RequestKind.WATCH: WATCHES,
    RequestKind.FILE: FILES,
}

_MAX_KNOWN = 64
"""Models that are remembered: those that were served last."""

_KNOWN_FOR = 30 * 86_400
"""Seconds for which a model is remembered that no worker serves any more."""


def clip_queue(kind: RequestKind, model: str | None) -> str:
    """Return the queue of a request. Those that name no model are in the queues of 0.1.0."""
    queue = _QUEUE_OF[kind]
    return queue if model is None else f"{queue}:{model}"


def queues_of_worker(model: str, *, default: bool) -> list[str]:
    """Return the queues of a worker by priority; with `default`, also those without a model, in
    pairs of equal priority."""
    named = [f"{queue}:{model}" for queue in CLIP_QUEUES]
    if not default:
        return named
    return [queue for pair in zip(CLIP_QUEUES, named, strict=True) for queue in pair]


def queue_name(model: str) -> str:
    """Return the name of a model as its queues and its results have it."""
    return model[:MAX_MODEL_NAME]


@dataclass(frozen=True)
class ModelWorker:
    """What a running model worker reports.

    Attributes:
        name: of the worker.
        model: that it serves; None for a worker of 0.1.0, which does not say.
        default: whether it also answers requests that name no model.
        max_model_len: how many tokens prompt and answer may have together, if it knows.
        trouble: why it answers nothing at the moment, in a sentence with advice.
    """

    name: str
    model: str | None
    default: bool
    max_model_len: int | None
    trouble: str | None


class Models:
    """The models that workers serve or have served."""

    def __init__(self, redis: redis.Redis) -> None:
        self._redis = redis

    def workers(self) -> list[ModelWorker]:
        """Return the running model workers, by their names."""
        keys = worker_registration.get_keys(Queue(QUERIES, connection=self._redis))
        names = sorted(key.rpartition(":")[2] for key in keys)
        with self._redis.pipeline(transaction=False) as pipeline:
            for name in names:
                pipeline.exists(f"rq:worker:{name}")
                pipeline.hmget(
                    redis_keys.worker(name), "model", "default", "max_model_len", "trouble"
                )
            found = pipeline.execute()
        workers = []
        for name, alive, fields in zip(names, found[::2], found[1::2], strict=True):
            model, default, length, trouble = cast("list[bytes | None]", fields)
            if alive:
                workers.append(
                    ModelWorker(
                        name,
                        _text(model),
                        default != b"0",
                        int(length) if length and length.isdigit() else None,
                        _text(trouble),
                    )
                )
        return workers

    def note(self, model: str) -> None:
        """Remember that a worker serves `model` now."""
        now = shared().time()
        with self._redis.pipeline() as pipeline:
            pipeline.zadd(redis_keys.MODELS, {model: now})
            pipeline.zremrangebyscore(redis_keys.MODELS, 0, now - _KNOWN_FOR)
            pipeline.zremrangebyrank(redis_keys.MODELS, 0, -_MAX_KNOWN - 1)
            pipeline.expire(redis_keys.MODELS, _KNOWN_FOR)
            pipeline.execute()

    def known(self) -> list[str]:
        """Return the models that are served or were served lately, by their names."""
        found = cast("list[bytes]", self._redis.zrange(redis_keys.MODELS, 0, -1))
        return sorted(name.decode() for name in found)

    def require(self, model: str | None) -> None:
        """Check that a worker serves `model`, or has done so lately: then a request for it waits.

        Raises StreamerError(UNKNOWN_MODEL).
        """
        if model is None or self._redis.zscore(redis_keys.MODELS, model) is not None:
            return
        known = self.known()
        served = f"those served are {', '.join(known)}" if known else "none is served yet"
        raise StreamerError(
            ErrorCode.UNKNOWN_MODEL,
            f"No model worker serves the model '{model[:80]}' ({served}): name one of them, or "
            "start `streamer worker` with this model.",
            "model",
        )

    def unserved(self, workers: Iterable[ModelWorker]) -> dict[str, int]:
        """Return the number of waiting requests of each model that none of `workers` serves."""
        left = sorted(set(self.known()) - {worker.model for worker in workers})
        with self._redis.pipeline(transaction=False) as pipeline:
            for model in left:
                for queue in CLIP_QUEUES:
                    pipeline.llen(f"{Queue.redis_queue_namespace_prefix}{queue}:{model}")
            lengths = cast("list[int]", pipeline.execute())
        size = len(CLIP_QUEUES)
        waiting = {m: sum(lengths[size * i : size * (i + 1)]) for i, m in enumerate(left)}
        return {model: count for model, count in waiting.items() if count}


def _text(raw: bytes | None) -> str | None:
    return raw.decode(errors="replace") if raw else None
