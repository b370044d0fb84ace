"""Requests whose jobs Redis loses, by eviction or deletion, end with an error result."""

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import redis
from rq.job import Job

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.domain.query import QueryStatus
from streamer.domain.request import ClipRequest
from streamer.domain.stream import StreamSpec
from streamer.domain.timestamp import utc_now
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode
from streamer.queues.lost_requests import LostRequests
from streamer.service import Service
from streamer.settings import Settings
from streamer.timeline.results import Timeline
from workers.recorder.worker import Recorder

Eventually = Callable[..., None]


@pytest.fixture
def client(settings: Settings) -> Iterator[Service]:
    """An installation with a live stream that has a frame, and a recording."""
    with Service(settings) as opened:
        for name, live in (("yard", True), ("film", False)):
            watch = Watch(prompt="What?", window=10, max_frames=4, max_tokens=8)
            spec = StreamSpec(name=name, url=f"rtsp://{name}/", live=live, watches=[watch])
            opened.registry.create(spec, spec.url)
            opened.frames.put(
                spec.id, b"jpeg", Measures(32, 24, change=0.0), time=time.time(), pts=0.0
            )
        yield opened


@pytest.fixture
def lost(client: Service, redis_client: redis.Redis) -> LostRequests:
    return LostRequests(redis_client, client.queue)


def evict(redis_client: redis.Redis, request_id: str) -> None:
    assert redis_client.delete(Job.key_for(request_id))


def clip(client: Service, name: str) -> ClipRequest:
    stream = client.stream(name)
    request = ClipRequest.for_watch(
        stream,
        stream.watches[0],
        start=utc_now(),
        end=utc_now(),
        frames=client.frames.newest(stream.id),
    )
    client.jobs.submit(request)
    return request


@pytest.mark.parametrize("look", ["get", "list", "sweep"])
def test_a_query_without_a_job_fails_with_a_result_however_it_is_found(
    client: Service, lost: LostRequests, redis_client: redis.Redis, look: str
) -> None:
    # given a question whose job was evicted, and one that waits
    gone, waiting = (client.ask("Anyone?", "yard") for _ in range(2))
    evict(redis_client, gone.id)
    # when somebody looks at it, or a worker looks after all of them
    if look == "get":
        client.query(gone.id)
    elif look == "list":
        client.queries()
    else:
        assert lost.sweep() == 1
    # then it has failed, with a result that is published once
    query = client.query(gone.id)
    assert query.status is QueryStatus.FAILED
    assert query.result is not None
    assert query.result.error is not None
    assert query.result.error.code is ErrorCode.JOB_LOST
    assert query.result.prompt == "Anyone?"
    assert lost.sweep() == 0
    assert [result.request_id for _, result in client.queue.read("0-0")] == [gone.id]
    assert client.query(waiting.id).status is QueryStatus.QUEUED


@pytest.mark.parametrize("loss", ["evicted", "flushed"])
def test_waiting_ends_when_the_job_is_lost(
    client: Service, redis_client: redis.Redis, eventually: Eventually, loss: str
) -> None:
    # given somebody who waits for an answer
    asked = client.ask("Anyone?", "yard")
    found = []
    waiter = threading.Thread(target=lambda: found.append(client.query(asked.id, wait=300)))
    waiter.start()
    channel = redis_keys.answered(asked.id)
    eventually(lambda: redis_client.pubsub_numsub(channel)[0][1] == 1)
    # when Redis loses the job, or everything
    if loss == "evicted":
        evict(redis_client, asked.id)
    else:
        redis_client.flushall()
    # then the wait ends long before its time, with a result
    waiter.join(60)
    assert not waiter.is_alive()
    (query,) = found
    assert query.status is QueryStatus.FAILED
    assert query.result is not None
    assert query.result.error is not None
    assert query.result.error.code is ErrorCode.JOB_LOST


@pytest.mark.parametrize("name", ["yard", "film"])
def test_the_lost_clip_of_a_watch_or_a_recording_is_counted_out_with_a_result(
    client: Service, redis_client: redis.Redis, name: str
) -> None:
    stream = client.stream(name)
    owner = stream.watches[0].id if stream.live else stream.id
    gone, waiting = clip(client, name), clip(client, name)
    evict(redis_client, gone.id)
    assert client.jobs.in_flight(owner) == 1
    ((_, result),) = client.queue.read("0-0")
    assert result.error is not None
    assert (result.request_id, result.error.code) == (gone.id, ErrorCode.JOB_LOST)
    assert (result.stream_name, result.watch_id) == (name, stream.watches[0].id)
    assert client.jobs.drop_waiting(owner) == 1
    assert not client.queue.answered(waiting.id)


def test_a_job_with_a_record_or_a_result_is_not_lost(
    client: Service, lost: LostRequests, redis_client: redis.Redis
) -> None:
    waiting, cancelled = (client.ask("Anyone?", "yard") for _ in range(2))
    client.cancel(cancelled.id)
    assert lost.sweep() == 0
    assert not lost.publish(waiting.id)
    assert client.query(cancelled.id).status is QueryStatus.CANCELLED
    assert not lost.publish("qry_of_which_nothing_is_known")


def test_a_lost_request_reaches_the_timeline(
    client: Service, lost: LostRequests, redis_client: redis.Redis, settings: Settings
) -> None:
    asked = client.ask("Anyone?", "yard")
    evict(redis_client, asked.id)
    lost.sweep()
    timeline = Timeline(settings.timeline_url)
    recorder = Recorder(redis_client, timeline, stopping=threading.Event())
    recorder.join()
    recorder.step()
    found = timeline.get(asked.id)
    timeline.close()
    assert found is not None
    assert found.error is not None
    assert found.error.code is ErrorCode.JOB_LOST


def test_a_worker_that_takes_a_job_without_a_record_says_so(
    client: Service, redis_client: redis.Redis, worker_process, random_checkpoint
) -> None:
    # given a question whose record was evicted while it waited in the queue
    asked = client.ask("Anyone?", "yard")
    evict(redis_client, asked.id)
    # when a worker takes it
    worker = worker_process("gpu", "--burst", STREAMER_MODEL=str(random_checkpoint), ready=False)
    assert worker.wait() == 0, worker.output
    # then the error comes without a question
    ((_, result),) = client.queue.read("0-0")
    assert result.error is not None
    assert (result.request_id, result.error.code) == (asked.id, ErrorCode.JOB_LOST)
