"""Two real model workers: which of them answers the clips of a stream."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamer import redis_keys
from streamer.domain.kinds import RequestKind
from streamer.settings import Settings
from tests.support.gpu_service import Service
from tests.support.worker_process import WorkerProcess

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

LONG = 300.0
"""Seconds."""

MAX_ROUNDS = 20


def name_of(worker: WorkerProcess) -> str:
    """Return the name under which a worker is registered: it logs it once it is ready."""
    (ready,) = (line for line in worker.output.splitlines() if '"event": "ready"' in line)
    return str(json.loads(ready)["worker"])


def test_clips_go_to_the_worker_that_knows_their_stream_and_else_to_the_other(
    redis_client: Any,
    settings: Settings,
    random_checkpoint: Path,
    worker_process: Callable[..., WorkerProcess],
    eventually: Callable[..., None],
) -> None:
    service = Service(redis_client, settings, worker_process, random_checkpoint)

    def ask(count: int, **kwargs: Any) -> None:
        """Submit clips of one stream, and wait for their answers."""
        asked = service.submit(count, kind=RequestKind.WATCH, **kwargs)
        eventually(lambda: all(service.results.answered(one.id) for one in asked), timeout=LONG)
        found = [service.results.get(one.id) for one in asked]
        assert [one.error for one in found if one is not None] == [None] * count

    def last() -> str:
        """Return the worker that has taken the last clip."""
        return str(redis_client.get(redis_keys.last_worker("str_1")).decode())

    def ask_in_turn(count: int) -> int:
        """Ask one clip after the other; return how many the worker of the one before answered."""
        stayed = 0
        for _ in range(count):
            before = last()
            eventually(lambda name=before: redis_client.exists(redis_keys.has_room(name)))
            ask(1)
            stayed += last() == before
        return stayed

    def answered(name: str) -> int:
        return int(redis_client.hget(f"rq:worker:{name}", "successful_job_count") or 0)

    # given two model workers, one of which has answered a clip of a stream
    started = [service.worker(STREAMER_WORKER_SLOTS="4") for _ in range(2)]
    workers = {name_of(one): one for one in started}
    ask(1)
    # when more come, one after the other, then it answers them, but for a few at most which the
    # other one has found first; on a busy machine, which wakes it late, in one of several rounds
    assert any(ask_in_turn(12) >= 10 for _ in range(MAX_ROUNDS))
    # when more come at once than it has room for, then both answer some
    before = {name: answered(name) for name in workers}
    ask(40, max_tokens=64)
    assert all(answered(name) > before[name] for name in workers)
    # when the one that knows the stream dies, then the other answers
    known = last()
    (other,) = set(workers) - {known}
    workers[known].kill()
    ask(4)
    assert last() == other
