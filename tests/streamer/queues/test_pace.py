"""How fast jobs leave a queue, and which queries are refused for it."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from rq import Queue
from rq.serializers import JSONSerializer

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.api.app import create_app
from streamer.clock import SystemClock
from streamer.domain.stream import StreamSpec
from streamer.errors import ErrorCode, StreamerError
from streamer.queues.models import QUERIES
from streamer.queues.pace import expected_wait
from streamer.service import Service
from workers import context
from workers.rq.thread_worker import ThreadWorker


@pytest.fixture
def yard(client: Service) -> Service:
    """An installation with a camera that has a picture, in which a query may wait two seconds."""
    client.settings.max_query_wait = 2.0
    spec = StreamSpec(name="yard", url="rtsp://cam/", live=True)
    client.registry.create(spec, spec.url)
    now = SystemClock().time()
    client.frames.put(spec.id, b"jpeg", Measures(32, 24, change=0.0), time=now, pts=0.0)
    return client


def waiting(client: redis.Redis, number: int) -> None:
    """Let so many jobs wait in the queue of queries."""
    queue = Queue(QUERIES, connection=client, serializer=JSONSerializer)
    for _ in range(number):
        queue.enqueue_call("job", timeout=60)


def measured(client: redis.Redis, taken: float, seconds: float) -> None:
    """Set how many queries workers have taken in so many seconds."""
    client.hset(redis_keys.pace(QUERIES), mapping={"taken": taken, "seconds": seconds})


def take_all(client: redis.Redis) -> list[float]:
    """Run a worker until nothing waits; return what each job learned of the wait behind it."""
    reported: list[float] = []
    ThreadWorker(
        [QUERIES],
        client,
        slots=1,
        functions={"job": lambda: reported.append(context.wait_behind())},
        stopping=threading.Event(),
        lease=60.0,
        poll=0.1,
        on_failed=lambda *_: None,
    ).work(burst=True)
    return reported


def pace(client: redis.Redis) -> tuple[float, float]:
    fields = client.hmget(redis_keys.pace(QUERIES), "taken", "seconds")
    taken, seconds = (float(field or 0) for field in fields)
    return taken, seconds


def test_the_time_between_two_takes_counts_while_others_wait(redis_client: redis.Redis) -> None:
    # given jobs that a worker takes one after the other
    waiting(redis_client, 5)
    assert take_all(redis_client) == [0.0] * 5
    # then four of them were waited for
    taken, seconds = pace(redis_client)
    assert taken == 4
    assert seconds > 0
    # and one that comes when nothing waits says nothing of the worker
    waiting(redis_client, 1)
    take_all(redis_client)
    assert pace(redis_client) == (4, seconds)
    assert 0 < redis_client.ttl(redis_keys.pace(QUERIES)) <= 60


def test_the_wait_is_the_number_of_waiting_jobs_by_the_pace(redis_client: redis.Redis) -> None:
    # given eight jobs in two seconds
    measured(redis_client, 8, 2)
    waiting(redis_client, 6)
    assert expected_wait(redis_client, QUERIES) == (6, pytest.approx(1.5))
    # then a job that is taken hears how long those behind it wait
    reported = take_all(redis_client)
    assert reported[0] == pytest.approx(1.25, abs=0.5)
    assert reported[-1] == 0
    assert expected_wait(redis_client, QUERIES) == (0, 0)


def test_what_has_hardly_been_measured_is_not_known(redis_client: redis.Redis) -> None:
    waiting(redis_client, 6)
    assert expected_wait(redis_client, QUERIES) == (6, None)
    # the first jobs of a busy time only fill the slots of the workers
    measured(redis_client, 16, 0.2)
    assert expected_wait(redis_client, QUERIES) == (6, None)


def test_old_takes_count_less_and_a_time_without_workers_hardly(redis_client: redis.Redis) -> None:
    # given a pace of eight a second, and jobs that wait for an hour without a worker
    measured(redis_client, 240, 30)
    waiting(redis_client, 40)
    redis_client.hset(redis_keys.pace(QUERIES), "since", 1)
    # when one comes back and goes on as before
    take_all(redis_client)
    # then what it does counts again
    taken, seconds = pace(redis_client)
    assert seconds <= 30
    assert taken / seconds > 2


def by_python(client: Service) -> str:
    with pytest.raises(StreamerError) as caught:
        client.ask("Anyone?", "yard", stale_ok=True)
    assert caught.value.code is ErrorCode.TOO_MANY_QUERIES
    assert caught.value.retry_after == pytest.approx(2.25, abs=0.01)
    return caught.value.message


@pytest.fixture
def api(yard: Service) -> Iterator[TestClient]:
    with TestClient(create_app(yard), base_url="http://127.0.0.1") as opened:
        yield opened


def by_http(api: TestClient, path: str, body: dict[str, Any]) -> str:
    answer = api.post(path, json=body)
    assert answer.status_code == 429, answer.text
    assert answer.headers["Retry-After"] == "3"
    error = answer.json()["error"]
    assert (error["code"], error["type"]) == ("TOO_MANY_QUERIES", "rate_limit_error")
    return str(error["message"])


@pytest.mark.parametrize("door", ["Python", "queries", "survey", "chat"])
def test_a_query_that_would_wait_too_long_is_refused_at_every_door(
    yard: Service, api: TestClient, redis_client: redis.Redis, door: str
) -> None:
    def ask() -> str:
        question = {"prompt": "Anyone?", "stream": "yard", "stale_ok": True}
        if door == "Python":
            return by_python(yard)
        if door == "queries":
            return by_http(api, "/v1/queries", question)
        if door == "survey":
            return by_http(api, "/v1/queries", {"prompt": "Anyone?", "streams": ["yard"]})
        hello = {"role": "user", "content": "Hi"}
        return by_http(api, "/v1/chat/completions", {"model": "stream/yard", "messages": [hello]})

    # given four queries a second, of which nine wait: more than two seconds
    measured(redis_client, 8, 2)
    waiting(redis_client, 9)
    redis_client.set(redis_keys.LOADING, "here")  # without any model worker the chat is refused
    keys = redis_client.dbsize()
    # when another one comes, then it is refused with the reason, and nothing of it is kept
    message = ask()
    assert message.startswith("A question would wait about 2 s for a model worker, longer than 2 s")
    assert "max_query_wait" in message
    assert redis_client.dbsize() <= keys + 2  # what the API knows of its caller
    assert redis_client.llen(f"rq:queue:{QUERIES}") == 9


def test_as_many_may_wait_as_may_be_waited_for_or_half_of_those_that_are_answered(
    yard: Service, redis_client: redis.Redis
) -> None:
    measured(redis_client, 8, 2)
    # given a limit of two seconds, then nine are accepted: the last one finds eight before it
    waiting(redis_client, 8)
    yard.ask("Anyone?", "yard", stale_ok=True)
    assert by_python(yard)
    # and more while more are being answered, however long that takes
    running = {f"running:{number}": 4e9 for number in range(24)}
    redis_client.zadd(f"rq:wip:{QUERIES}", running)
    for _ in range(4):
        yard.ask("Anyone?", "yard", stale_ok=True)
    with pytest.raises(StreamerError):
        yard.ask("Anyone?", "yard", stale_ok=True)
    # and when the pace is not known, only number and bytes count
    redis_client.delete(redis_keys.pace(QUERIES))
    yard.ask("Anyone?", "yard", stale_ok=True)
