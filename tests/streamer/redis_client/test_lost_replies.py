"""Commands whose reply is lost: the client sends them again, and nothing happens twice."""

from collections.abc import Iterator
from urllib.parse import urlsplit, urlunsplit

import pytest
import redis

from streamer import redis_keys
from streamer.domain.stream import StreamSpec
from streamer.domain.watch import Watch
from streamer.local.redis_server import EmbeddedServer
from streamer.queues.jobs import Jobs
from streamer.redis_client.connections import connect
from streamer.settings import Settings
from streamer.sources.streams import StreamRegistry
from tests.support.forgetful_redis import ForgetfulLine

URL = "rtsp://127.0.0.1:1/x"


@pytest.fixture
def line(valkey: EmbeddedServer) -> Iterator[ForgetfulLine]:
    with ForgetfulLine(valkey.port) as line:
        yield line


@pytest.fixture
def client(line: ForgetfulLine, valkey: EmbeddedServer) -> Iterator[redis.Redis]:
    """A client as the programs have it, on the line that loses answers."""
    parts = urlsplit(valkey.url)
    login = parts.netloc.rpartition("@")[0]
    with connect(urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{line.port}"))) as client:
        yield client


def test_a_stream_is_attached_and_edited_once(
    redis_client: redis.Redis, client: redis.Redis, line: ForgetfulLine
) -> None:
    registry = StreamRegistry(client)
    known = StreamSpec(name="known", url=URL, live=True)
    registry.create(known, URL)
    registry.update("known", paused=True)
    # when the answer to attaching is lost
    line.lose_answer_to(b"EVALSHA")
    registry.create(StreamSpec(name="cam", url=URL, live=True), URL)
    assert line.lost == 1
    assert sorted(stream.name for stream in registry.list()) == ["cam", "known"]
    # and that to adding a watch
    line.lose_answer_to(b"EVALSHA")
    added = Watch(prompt="What is there?")
    registry.edit("cam", lambda spec: {"watches": [*spec.watches, added]})
    assert line.lost == 2
    assert [watch.id for watch in registry.get("cam").watches] == [added.id]


def test_a_waiting_stream_is_removed_whole(
    redis_client: redis.Redis, client: redis.Redis, line: ForgetfulLine, settings: Settings
) -> None:
    jobs = Jobs(client, settings)
    jobs.start_ingest("str_1")
    jobs.stop_ingest("str_1")
    jobs.start_ingest("str_2")
    line.lose_answer_to(b"EVALSHA")
    jobs.stop_ingest("str_2")
    assert line.lost == 1
    assert not redis_client.exists(f"rq:job:{redis_keys.stream_job('str_2')}")
    assert redis_client.llen("rq:queue:ingest") == 0


def test_a_stream_is_started_once(
    redis_client: redis.Redis, client: redis.Redis, line: ForgetfulLine, settings: Settings
) -> None:
    jobs = Jobs(client, settings)
    jobs.start_ingest("str_1")
    line.lose_answer_to(b"EVALSHA")
    jobs.start_ingest("str_2")
    assert line.lost == 1
    assert redis_client.lrange("rq:queue:ingest", 0, -1) == [b"ingest-str_1", b"ingest-str_2"]
