import json

import pytest
from rq import Queue, Worker
from rq.serializers import JSONSerializer

from streamer import redis_keys
from streamer.events import Events
from streamer.health.worker_states import WorkerStates
from streamer.queues.jobs import INGEST
from streamer.queues.models import CLIP_QUEUES


@pytest.fixture
def events(redis_client):
    return Events(redis_client)


def worker(redis_client, name, *queues):
    names = [Queue(queue, connection=redis_client) for queue in queues]
    made = Worker(names, name=name, connection=redis_client, serializer=JSONSerializer)
    made.register_birth()
    return made


def heard(events):
    found = [json.loads(event.data) for event in events.read("0") if not event.lost]
    return [(each["name"], each["kind"], each["previous"], each["state"]) for each in found]


def test_a_worker_that_starts_and_ends_is_announced_once(redis_client, events):
    ingest = worker(redis_client, "camera-host-1", INGEST)
    worker(redis_client, "gpu-host-1", *CLIP_QUEUES)

    for _ in range(3):  # several programs look
        WorkerStates(redis_client).look()
    ingest.register_death()
    for _ in range(3):
        WorkerStates(redis_client).look()

    assert sorted(heard(events)[:2]) == [
        ("camera-host-1", "ingest worker", None, "running"),
        ("gpu-host-1", "model worker", None, "running"),
    ]
    assert heard(events)[2:] == [("camera-host-1", "ingest worker", "running", "ended")]


def test_a_worker_that_is_silent_may_come_back(redis_client, events):
    killed = worker(redis_client, "gpu-host-1", *CLIP_QUEUES)
    WorkerStates(redis_client).look()
    record = redis_client.hgetall(killed.key)

    redis_client.delete(killed.key)  # its lease has ended
    WorkerStates(redis_client).look()
    redis_client.hset(killed.key, mapping=record)
    WorkerStates(redis_client).look()

    assert [(previous, state) for _, _, previous, state in heard(events)] == [
        (None, "running"),
        ("running", "silent"),
        ("silent", "running"),
    ]


def test_a_recorder_is_announced_by_its_beat(redis_client, events):
    WorkerStates(redis_client).look()
    redis_client.set(redis_keys.RECORDER, "{}")
    WorkerStates(redis_client).look()
    redis_client.delete(redis_keys.RECORDER)
    WorkerStates(redis_client).look()

    assert heard(events) == [
        ("recorder", "recorder", None, "running"),
        ("recorder", "recorder", "running", "silent"),
    ]


def test_what_is_remembered_of_workers_is_bounded(redis_client):
    worker(redis_client, "gpu-host-1", *CLIP_QUEUES)
    WorkerStates(redis_client).look()

    assert redis_client.ttl(redis_keys.KNOWN_WORKERS) > 0
