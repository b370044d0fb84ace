"""`python -m workers.gpu` as a real process with a real (random) checkpoint."""

import time

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from streamer.domain.kinds import RequestKind
from streamer.domain.query import QueryStatus
from streamer.errors import ErrorCode
from streamer.queues.models import CLIP_QUEUES, QUERIES
from tests.support.gpu_service import Service

LONG = 200.0


@pytest.fixture
def service(redis_client, settings, worker_process, random_checkpoint):
    return Service(redis_client, settings, worker_process, random_checkpoint)


def test_it_answers_from_all_queues_and_ends_on_sigterm(service, eventually):
    asked = [r for kind in RequestKind for r in service.submit(8, kind=kind)]
    worker = service.worker(STREAMER_LEASE="12")  # it reports three times in that
    results = [service.results.wait(r.id, timeout=LONG) for r in asked]
    assert [r.error for r in results] == [None] * 24
    assert {r.model for r in results} == {"tiny-random"}
    assert service.jobs.workers() == {"ingest": 0, "clips": 1}
    assert service.jobs.status(asked[0].id) is QueryStatus.DONE

    def stats():
        (numbers,) = service.jobs.worker_stats().values()
        return numbers

    # and reports what the caches saved: all pictures are the same
    eventually(lambda: stats()["finished"] == 24)
    assert stats()["tile_hit_rate"] == pytest.approx(47 / 48)
    assert 0 < stats()["prefix_hit_rate"] < 1
    assert (stats()["restarts"], stats()["waiting"], stats()["running"]) == (0, 0, 0)
    worker.terminate()
    assert worker.wait(timeout=LONG) == 0
    assert service.jobs.workers() == {"ingest": 0, "clips": 0}
    assert service.jobs.worker_stats() == {}
    assert len(service.results.read("0-0")) == 24


def test_a_clip_in_a_queue_of_an_earlier_release_is_answered(service, redis_client):
    """The name of the job is a contract with the queue: it was once the path of a function."""
    asked = service.request()
    queue = Queue(QUERIES, connection=redis_client, serializer=JSONSerializer)
    queue.enqueue_call(
        "workers.clip.answer", args=(asked.model_dump(mode="json"),), job_id=asked.id
    )
    worker = service.worker("--burst", ready=False)
    assert worker.wait(timeout=LONG) == 0
    assert service.results.get(asked.id).error is None


def test_burst_ends_when_nothing_is_left(service):
    asked = service.submit(3)
    worker = service.worker("--burst", ready=False)
    assert worker.wait(timeout=LONG) == 0
    assert all(service.results.get(r.id) for r in asked)
    assert [service.jobs.depths()[name] for name in CLIP_QUEUES] == [0, 0, 0]


def test_a_running_query_can_be_cancelled(service, eventually):
    service.worker(STREAMER_WORKER_SLOTS="1")
    (asked,) = service.submit(max_tokens=4000)
    eventually(lambda: service.jobs.status(asked.id) is QueryStatus.RUNNING)
    (after,) = service.submit()
    assert service.jobs.cancel(asked.id) is QueryStatus.CANCELLED
    assert service.results.get(asked.id).error.code is ErrorCode.CANCELLED
    assert service.results.wait(after.id, timeout=LONG).error is None


def test_a_worker_killed_under_load_loses_nothing_and_answers_nothing_twice(service, eventually):
    # given two workers with plenty to do
    first, second = (service.worker(ready=False, STREAMER_LEASE="4") for _ in range(2))
    for worker in (first, second):
        worker.wait_for('"ready"')
    asked = service.submit(20, kind=RequestKind.FILE, max_tokens=16)
    # when one is killed in the middle
    eventually(lambda: len(service.results.read("0-0")) >= 3)
    first.kill()
    # then every request has one result, and none is an error
    for request in asked:
        assert service.results.wait(request.id, timeout=LONG), "a request was lost"
    published = [r for _, r in service.results.read("0-0")]
    assert sorted(r.request_id for r in published) == sorted(r.id for r in asked)
    assert [r.error for r in published if r.error] == []
    assert service.jobs.in_flight("str_1") == 0


def test_work_that_a_stopping_worker_cannot_finish_returns_to_the_queue(service, eventually):
    (asked,) = service.submit(max_tokens=4000)
    worker = service.worker()
    eventually(lambda: service.jobs.status(asked.id) is not QueryStatus.QUEUED)
    worker.terminate()
    assert worker.wait(timeout=LONG) == 0
    if service.results.get(asked.id) is None:  # else it was quick enough to finish
        assert service.jobs.status(asked.id) is QueryStatus.QUEUED
        assert service.jobs.depths()[QUERIES] == 1


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"STREAMER_MODEL": "no/such/checkpoint"}, "no/such/checkpoint"),
        ({"STREAMER_REDIS_URL": "redis://:s3cret@127.0.0.1:1/0"}, "does not answer"),
        ({"STREAMER_REDIS_URL": ""}, "streamer up"),
        ({"STREAMER_WORKER_SLOTS": "none"}, "worker_slots"),
        ({"STREAMER_NO_SUCH_KEY": "1"}, "STREAMER_NO_SUCH_KEY"),
    ],
)
def test_a_failure_at_the_start_is_one_sentence(service, env, expected):
    worker = service.worker(ready=False, **{"STREAMER_LOG_LEVEL": "info"} | env)
    assert worker.wait(timeout=LONG) == 1
    assert expected in worker.output
    assert "Traceback" not in worker.output
    assert "s3cret" not in worker.output
    assert len(worker.output.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("folder", "expected"), [("nowhere", "no such folder"), ("", "config.json")]
)
def test_a_bad_checkpoint_is_refused_before_anything_heavy_is_imported(
    service, tmp_path, folder, expected
):
    (tmp_path / "torch.py").write_text("raise SystemError('torch was imported')")
    model = str(tmp_path / folder) if folder else str(tmp_path)
    worker = service.worker(ready=False, STREAMER_MODEL=model, PYTHONPATH=str(tmp_path))
    assert worker.wait(timeout=LONG) == 1
    assert expected in worker.output
    assert "torch" not in worker.output


def test_a_signal_while_the_model_loads_ends_the_worker(service):
    worker = service.worker(ready=False)
    time.sleep(1.0)
    worker.terminate()
    assert worker.wait(timeout=LONG) in (0, -15)  # the latter before Python has begun
    assert "Traceback" not in worker.output
