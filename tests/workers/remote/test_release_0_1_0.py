"""What release 0.1.0 left in Redis is read and worked off: recorded by that release's own code."""

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from rq import Queue
from rq.serializers import JSONSerializer

from streamer import redis_keys
from streamer.domain.frame import Gap
from streamer.domain.query import QueryStatus
from streamer.domain.stream import StreamState
from streamer.domain.timestamp import utc_now
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.queues.jobs import INGEST
from streamer.redis_client.record_version import RECORD_VERSION, join_records
from streamer.service import Service
from streamer.timeline.results import Timeline
from tests.support.clips import request
from tests.support.scripted_model import said
from workers.gpu.clip_job import answer_clip
from workers.gpu.worker import serve_clips
from workers.recorder.worker import Recorder

KEPT = Path(__file__).parents[2] / "streamer" / "release_0_1_0.redis.json"

REQUESTS = {"req_caption", "req_choice", "req_file"}
RESULTS = {"req_old", "req_bad"}

FIELDS = {
    *("id", "kind", "stream_id", "stream_name", "watch_id", "start", "end", "prompt", "frames"),
    *("max_tokens", "response_format", "created_at", "data"),
}
"""Those of a request in release 0.1.0, which refuses any other."""


def restore(client) -> None:
    """Store every key as it was, with its kind and a lifetime if it had one."""
    raw = base64.b64decode
    for entry in json.loads(KEPT.read_text()):
        key, value = entry["key"], entry["value"]
        match entry["type"]:
            case "string":
                client.set(key, raw(value))
            case "hash":
                client.hset(key, mapping={field: raw(each) for field, each in value.items()})
            case "list":
                client.rpush(key, *map(raw, value))
            case "set":
                client.sadd(key, *map(raw, value))
            case "zset":
                client.zadd(key, {raw(member): score for member, score in value})
            case "stream":
                for entry_id, fields in value:
                    kept = {field: raw(each) for field, each in fields.items()}
                    if "expires" in kept:  # when a frame does, in milliseconds
                        kept["expires"] = b"9e15"
                    client.xadd(key, kept, id=entry_id)
        if entry["expires"]:
            client.expire(key, 900)


@pytest.fixture
def remote(remote):
    """The same settings, by which no request is too old, however long ago it was recorded."""
    return remote.model_copy(update={"job_timeout": 1e9})


@pytest.fixture
def service(remote, redis_client):
    """The service on a Redis that 0.1.0 has used."""
    restore(redis_client)
    with Service(remote) as opened:
        yield opened


def test_its_streams_are_attached_with_all_they_have(service):
    door, yard = sorted(service.streams(), key=lambda stream: stream.name)

    # nobody runs it now, but what was counted is kept
    assert (yard.name, yard.state, yard.counters.packets) == ("yard", StreamState.CONNECTING, 40)
    assert yard.history == 3600
    assert [watch.prompt for watch in yard.watches] == ["What is there?", "Is the gate open?"]
    assert yard.watches[1].response_format.choices == ["yes", "no"]
    assert service.registry.secret_url(yard.id) == "rtsp://admin:s3cret@camera/yard"
    assert (door.name, door.sampling.fps, len(door.watches)) == ("door", 2.0, 1)
    frames = service.frames.newest(yard.id, 10)
    assert [frame.pts for frame in frames] == [0, 1, 2]
    assert all(jpeg.startswith(b"\xff\xd8") for jpeg in service.frames.load(frames))
    # and each still has its one job, which an ingest worker of this release takes
    for stream in (yard, door):
        service.jobs.start_ingest(stream.id)
    queue = Queue(INGEST, connection=service.connections.main, serializer=JSONSerializer)
    assert sorted(queue.job_ids) == sorted(f"ingest-{stream.id}" for stream in (yard, door))
    # and can be edited and detached
    service.edit("yard", paused=True)
    assert service.stream("yard").paused
    service.detach("door")
    assert [stream.name for stream in service.streams()] == ["yard"]


def test_its_questions_are_found_and_what_waits_is_answered_and_recorded(remote, server, service):
    # given a question that 0.1.0 answered, and four requests that it did not get to
    server.script = lambda body: said("yes" if "gate" in json.dumps(body) else "A red box.")
    by_status = {query.status: query for query in service.queries()}
    answered, waiting = by_status[QueryStatus.DONE], by_status[QueryStatus.QUEUED]
    assert answered.result is not None
    assert (answered.prompt, answered.result.text) == ("How many cars?", "Two.")
    # when a worker and a recorder of this release run
    stopping = threading.Event()
    worker = threading.Thread(target=serve_clips, args=(remote, stopping, True))
    worker.start()
    worker.join(120)
    assert not worker.is_alive()
    timeline = Timeline(remote.timeline_url)
    recorder = Recorder(service.connections.main, timeline, stopping=stopping)
    recorder.join()
    while recorder.step():
        pass
    # then each has its one result, beside those of 0.1.0
    found: dict[str, Any] = {each.request_id: each for each in timeline.query().results}
    timeline.close()
    assert set(found) == {*REQUESTS, *RESULTS, answered.id, waiting.id}
    assert found["req_old"].text == "A gate."
    assert found["req_bad"].error.code is ErrorCode.FRAMES_EXPIRED
    assert found["req_caption"].text == "A red box."
    assert found["req_choice"].data["choice"] == "yes"
    assert found["req_file"].data["media_end"] == 3.0
    assert all(found[name].error is None for name in {*REQUESTS, waiting.id})
    assert service.query(waiting.id).status is QueryStatus.DONE
    assert recorder.left_count == 0
    # and nothing waits or is in flight any more
    assert sum(service.jobs.depths()[name] for name in ("queries", "watches", "files")) == 0
    assert service.jobs.unanswered(["wch_text", "wch_choice"]) == [0, 0]


def test_a_redis_of_an_older_release_gets_the_version_of_this_one(redis_client):
    restore(redis_client)
    assert redis_client.get(redis_keys.RECORD_VERSION_KEY) is None

    join_records(redis_client)

    assert int(redis_client.get(redis_keys.RECORD_VERSION_KEY)) == RECORD_VERSION == 2


def test_the_next_release_may_share_a_redis_and_the_one_after_it_may_not(redis_client, remote):
    redis_client.set(redis_keys.RECORD_VERSION_KEY, RECORD_VERSION + 1)
    join_records(redis_client)
    assert int(redis_client.get(redis_keys.RECORD_VERSION_KEY)) == RECORD_VERSION + 1  # not lowered

    redis_client.set(redis_keys.RECORD_VERSION_KEY, RECORD_VERSION + 2)
    for start in (join_records, lambda _: serve_clips(remote, threading.Event(), burst=True)):
        with pytest.raises(StreamerError, match="upgrade this program") as refusal:
            start(redis_client)
        assert refusal.value.code is ErrorCode.RECORD_UNREADABLE


@pytest.mark.parametrize(("version", "readable"), [(1, True), (3, True), (4, False)])
def test_a_job_is_answered_if_its_release_is_near_enough(own, version, readable):
    # given a job that a program of another release has submitted since this worker started
    asked = request(own)
    own.jobs.submit(asked)
    stored = asked.model_dump(mode="json") | {"version": version, "lens": {"fov": 90}}

    answer_clip(stored)

    result = own.results.get(asked.id)
    assert (result.error is None) is readable
    if not readable:
        assert result.error.code is ErrorCode.RECORD_UNREADABLE
        assert "version 4" in result.error.message


def of_0_1_0(key: str, field: str) -> dict[str, Any]:
    """Return a record in a hash that release 0.1.0 stored."""
    (entry,) = (each for each in json.loads(KEPT.read_text()) if each["key"] == key)
    record: dict[str, Any] = json.loads(base64.b64decode(entry["value"][field]))
    return record


@pytest.mark.parametrize(
    "news",
    [{}, {"gaps": [Gap(start=utc_now(), end=utc_now())]}, {"stale": True}, {"logprobs": 0}],
    ids=lambda news: next(iter(news), "none"),
)
def test_a_job_carries_the_version_of_the_oldest_release_that_can_answer_it(own, news):
    from tests.workers.remote.test_tracing import stored_request

    asked = request(own).model_copy(update=news)
    own.jobs.submit(asked)

    stored = stored_request(own, asked.id)
    assert set(stored) == {*FIELDS, *news, *(["version"] if news else [])}
    assert stored.get("version", 1) == (RECORD_VERSION if news else 1)


def test_a_stream_is_stored_as_ingest_workers_of_0_1_0_read_it(client, redis_client):
    known = of_0_1_0("streamer:streams", "str_1449142bc0cf1dc8")

    def stored() -> dict[str, Any]:
        record: dict[str, Any] = json.loads(redis_client.hget(redis_keys.STREAMS, stream.id))
        return record

    client.jobs.served.note("acme/eye:7b")
    # given a stream of this release, of which somebody has asked for more than 0.1.0 knows
    stream = client.attach("rtsp://192.0.2.1/live", "yard", probe=False)
    assert set(stored()) == set(known)
    client.edit("yard", model="acme/eye:7b")
    client.watches.add("yard", Watch(prompt="Who is there?", model="acme/eye:7b"))
    assert set(stored()) == {*known, "model"}
    # when that is taken back
    client.edit("yard", model=None)
    last = client.stream("yard").watches[-1]
    client.watches.edit("yard", last.id, model=None)
    # then all that is left are the fields that 0.1.0 knows
    assert set(stored()) == set(known)
    assert [set(watch) for watch in stored()["watches"]] == [set(known["watches"][0])] * 2
