"""A model worker answers a small clip before it says that it is ready."""

from typing import Any

import pytest

from nvila_core import Engine
from streamer import redis_keys
from streamer.queues.jobs import Jobs
from tests.support.model_worker import ModelWorker
from workers.gpu import worker
from workers.gpu.warm_up import warm_up


def test_the_worker_is_ready_after_its_warm_up_only(
    redis_client, settings, random_checkpoint, monkeypatch
):
    # given a model worker whose warm-up is watched from outside
    jobs = Jobs(redis_client, settings)
    seen: list[Any] = []

    def watched(own, engine):
        for step in ("before", "after"):
            loading = redis_client.exists(redis_keys.LOADING)
            seen.append((step, jobs.workers()["clips"], jobs.models(), loading))
            if step == "before":
                warm_up(own, engine)
        seen.append(own)

    monkeypatch.setattr(worker, "warm_up", watched)
    # when it has become ready
    with ModelWorker(settings.model_copy(update={"model": str(random_checkpoint)})):
        # then no queue had it as a worker before the warm-up had ended
        *moments, own = seen
        assert moments == [("before", 0, {}, 1), ("after", 0, {}, 1)]
        # and its counts are those of its users' requests
        assert own.engine.stats()["submitted"] == own.engine.stats()["finished"] == 0


def test_every_kind_of_step_is_run(own, monkeypatch):
    counts = []
    reset = Engine.reset_stats
    monkeypatch.setattr(
        Engine, "reset_stats", lambda engine: counts.append(engine.stats()) or reset(engine)
    )
    warm_up(own, own.engine)
    (found,) = counts
    assert (found["finished"], found["failed"], found["completion_tokens"]) == (1, 0, 3)
    assert found["encoded_tiles"] == 2
    after = own.engine.stats()
    assert [after[name] for name in ("submitted", "finished", "encoded_tiles", "tiles")] == [0] * 4


def test_a_model_without_room_for_the_clip_is_ready_all_the_same(own, model):
    with Engine(model, kv_cache_tokens=16) as small:
        warm_up(own, small)
        assert small.stats()["submitted"] == 0
    assert not own.stopping.is_set()


def test_an_engine_that_breaks_down_ends_the_worker(own, model):
    engine = Engine(model)
    engine.start()
    engine.stop()
    warm_up(own, engine)
    assert own.failure is not None
    assert own.stopping.is_set()


@pytest.mark.timeout(60)
def test_a_worker_that_is_to_end_does_not_wait_for_its_warm_up(own, model):
    # given an engine whose thread does not run, and a worker that is stopping
    own.stopping.set()
    engine = Engine(model)
    # then the warm-up is given up
    warm_up(own, engine)
    assert engine.stats()["submitted"] == 1
    engine.stop()
    assert own.failure is None
