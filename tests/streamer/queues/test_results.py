import threading
import time

import pytest

from streamer import redis_keys
from streamer.domain.result import Result
from streamer.queues.results import Results


@pytest.fixture
def results(redis_client, settings):
    return Results(redis_client, settings)


def result(request_id="req_1", text="two people", **kwargs):
    return Result(
        request_id=request_id,
        kind="caption",
        stream_id="str_1",
        stream_name="yard",
        prompt="What is there?",
        text=text,
        **kwargs,
    )


def texts(entries):
    return [r.text for _, r in entries]


def test_a_result_is_published_once_and_the_first_stands(results, redis_client):
    assert results.publish(result(text="first"), owner_id=None)
    assert not results.publish(result(text="second"), owner_id=None)
    assert results.get("req_1").text == "first"
    assert redis_client.xlen(redis_keys.RESULTS) == 1


def test_once_even_when_many_publish_together(results, redis_client):
    outcomes = []
    barrier = threading.Barrier(8)

    def publish(i):
        barrier.wait()
        outcomes.append(results.publish(result(text=str(i)), owner_id="wch_1"))

    threads = [threading.Thread(target=publish, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(True) == 1
    assert redis_client.xlen(redis_keys.RESULTS) == 1


def test_publishing_takes_the_request_out_of_flight(results, redis_client):
    key = redis_keys.in_flight("wch_1")
    redis_client.zadd(key, {"req_1": 1, "req_2": 2})
    results.publish(result(), owner_id="wch_1")
    assert redis_client.zrange(key, 0, -1) == [b"req_2"]


def test_answers_expire(results, redis_client, settings):
    results.publish(result("req_0"), owner_id=None)
    assert 0 < redis_client.ttl(redis_keys.answer("req_0")) <= settings.query_ttl


def test_waiting_ends_when_the_answer_comes(results):
    publisher = threading.Timer(0.2, lambda: results.publish(result(), owner_id=None))
    publisher.start()
    assert results.wait("req_1", timeout=3600).text == "two people"
    publisher.join()


def test_waiting_for_what_is_there_or_never_comes(results):
    results.publish(result(), owner_id=None)
    assert results.wait("req_1", timeout=0) is not None
    assert results.wait("req_2", timeout=0) is None
    assert results.wait("req_2", timeout=0.1) is None


def test_reading_resumes_where_it_left_off(results):
    for i in range(3):
        results.publish(result(f"req_{i}", text=str(i)), owner_id=None)
    entries = results.read("0-0", count=2)
    assert texts(entries) == ["0", "1"]
    assert texts(results.read(entries[-1][0])) == ["2"]
    assert results.read(results.last_id(), block=0.05) == []


def test_following_starts_with_what_is_new(results):
    results.publish(result("req_old", text="old"), owner_id=None)
    follower = results.follow(block=0.05)
    first = []
    reader = threading.Thread(target=lambda: first.append(next(follower)))
    reader.start()
    deadline = time.monotonic() + 120
    number = 0
    while not first and time.monotonic() < deadline:  # until the follower has begun
        number += 1
        results.publish(result(f"req_{number}", text="new"), owner_id=None)
        time.sleep(0.02)
    reader.join()
    assert texts(first) == ["new"]


def test_following_can_begin_in_the_past(results):
    for i in range(3):
        results.publish(result(f"req_{i}", text=str(i)), owner_id=None)
    follower = results.follow("0-0")
    assert [next(follower)[1].text for _ in range(3)] == ["0", "1", "2"]


def test_an_entry_that_is_no_result_is_passed_over(results, redis_client):
    redis_client.xadd(redis_keys.RESULTS, {"json": "{}"})
    redis_client.xadd(redis_keys.RESULTS, {"other": "1"})
    results.publish(result(), owner_id=None)
    assert texts(results.read("0-0", count=1)) == ["two people"]
    redis_client.xadd(redis_keys.RESULTS, {"json": "nonsense"})
    assert len(results.read("0-0")) == 1
