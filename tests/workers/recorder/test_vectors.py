"""The vectors of search by meaning are made beside the recorder."""

import threading
import time

import numpy as np
import pytest

from streamer import redis_keys
from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.redis_client.outage import Outage
from streamer.timeline.results import Timeline
from streamer.timeline.sentences import DIMENSIONS
from streamer.timeline.vector_store import VectorStore
from workers.recorder.vectors import VectorMaker, VectorThread


@pytest.fixture
def timeline(settings):
    opened = Timeline(settings.timeline_url)
    yield opened
    opened.close()


def record(timeline, *numbers):
    timeline.record(
        [
            Result(
                request_id=f"req_{number}",
                kind="caption",
                stream_id="str_1",
                stream_name="yard",
                prompt="?",
                text=f"what was seen: {number}",
            )
            for number in numbers
        ]
    )


def made(timeline):
    return timeline.database.read(
        lambda c: c.exec_driver_sql("SELECT count(*) FROM result_vectors").scalar_one()
    )


def direction(texts):
    """Return a vector for each text; which one is not what these tests are about."""
    return np.ones((len(texts), DIMENSIONS), np.float32)


def maker(client, timeline):
    return VectorMaker(client, VectorStore(timeline.database), direction)


def test_old_and_new_results_get_their_vectors(redis_client, timeline):
    record(timeline, *range(100))
    making = maker(redis_client, timeline)

    while making.step():
        pass
    assert made(timeline) == 100

    record(timeline, 100, 101)
    assert making.step()
    assert made(timeline) == 102
    assert not making.step()


def test_one_recorder_at_a_time_makes_them(redis_client, timeline):
    record(timeline, *range(100))
    first, second = maker(redis_client, timeline), maker(redis_client, timeline)
    assert first.step()
    done = made(timeline)

    assert not second.step()
    assert made(timeline) == done
    # and another goes on where the first one ended, or was killed and fell silent
    first.give_up_turn()
    assert second.step()
    assert made(timeline) > done
    redis_client.delete(redis_keys.VECTORS)
    while first.step():
        pass
    assert made(timeline) == 100
    assert 0 < redis_client.ttl(redis_keys.VECTORS) <= 60


def test_the_thread_waits_for_results_and_ends_with_the_recorder(redis_client, timeline):
    stopping = threading.Event()
    thread = VectorThread(
        lambda: maker(redis_client, timeline), stopping, Outage(client=redis_client)
    )
    thread.start()
    record(timeline, *range(10))
    while made(timeline) < 10:
        assert thread.is_alive()
        time.sleep(0.05)

    stopping.set()
    thread.join(60)

    assert not thread.is_alive()
    assert not redis_client.exists(redis_keys.VECTORS)


def test_without_the_extra_the_thread_ends_at_once(redis_client):
    def make():
        raise StreamerError(ErrorCode.SEARCH_UNAVAILABLE, "It is not installed.")

    thread = VectorThread(make, threading.Event(), Outage(client=redis_client))
    thread.start()
    thread.join(60)

    assert not thread.is_alive()
