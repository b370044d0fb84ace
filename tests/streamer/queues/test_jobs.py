import json
import pickle

import pytest
from rq import Queue
from rq.job import Job
from rq.serializers import JSONSerializer

from streamer import redis_keys
from streamer.domain.kinds import RequestKind
from streamer.domain.query import QueryStatus
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode, StreamerError
from streamer.queues.jobs import CLIP_JOB, INGEST, Jobs, read_request
from streamer.queues.models import CLIP_QUEUES, FILES, QUERIES, WATCHES
from streamer.queues.results import Results
from streamer.response_format import ChoiceFormat, JsonFormat, TextFormat


@pytest.fixture
def jobs(redis_client, settings):
    return Jobs(redis_client, settings)


def request(kind=RequestKind.WATCH, **kwargs):
    now = utc_now()
    values = {
        "kind": kind,
        "stream_id": "str_1",
        "stream_name": "yard",
        "watch_id": "wch_1" if kind is RequestKind.WATCH else None,
        "start": now,
        "end": now,
        "prompt": "How many people? The code is 1234.",
        "frames": [],
    }
    return ClipRequest(**values | kwargs)


def queue(redis_client, name):
    """Open the queue as RQ's own tools do."""
    return Queue(name, connection=redis_client, serializer=JSONSerializer)


OLD_JOB = """
{"output": "choice", "choices": ["open", "closed"], "json_schema": null,
 "id": "qry_8a1d3c5e7f902b46", "kind": "query", "stream_id": "str_5f0c2d9be1a47360",
 "stream_name": "door", "watch_id": null, "start": "2026-01-09T09:13:20.000Z",
 "end": "2026-01-09T09:13:20.000Z", "prompt": "Is the door open?", "frames": [
  {"stream_id": "str_5f0c2d9be1a47360", "id": "1767950000000-0", "time": 1767950000.0,
   "pts": 12.5, "width": 640, "height": 360, "change": 0.02, "decode_ms": 3.1,
   "detail": [4.0, 2.0], "fresh": [1.0, 0.5]}],
 "max_tokens": 128, "created_at": "2026-01-09T09:13:21.000Z", "data": null}
"""
"""The argument of a clip job as version 0.1.0 queued it before records had `response_format`."""


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ({}, ChoiceFormat(choices=["open", "closed"])),
        ({"output": "text", "choices": []}, TextFormat()),
        (
            {"output": "json", "choices": [], "json_schema": {"type": "object"}},
            JsonFormat(json_schema={"type": "object"}),
        ),
    ],
)
def test_a_job_that_an_earlier_version_queued_is_read(jobs, redis_client, form, expected):
    # given
    old = json.loads(OLD_JOB) | form
    queue(redis_client, QUERIES).enqueue_call(CLIP_JOB, args=(old,), job_id=old["id"])
    # when
    (job,) = queue(redis_client, QUERIES).jobs
    found = read_request(job)
    # then
    assert found is not None
    assert found.response_format == expected
    assert (found.id, found.prompt, found.frames[0].pts) == (old["id"], "Is the door open?", 12.5)
    assert jobs.cancel(found.id) is QueryStatus.CANCELLED


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (RequestKind.QUERY, QUERIES),
        (RequestKind.WATCH, WATCHES),
        (RequestKind.FILE, FILES),
    ],
)
def test_a_request_waits_in_the_queue_of_its_kind_readable_by_rqs_own_tools(
    jobs, redis_client, kind, name
):
    asked = request(kind)
    jobs.submit(asked)
    assert jobs.depths() == {n: int(n == name) for n in (*CLIP_QUEUES, INGEST)}
    (job,) = queue(redis_client, name).jobs
    assert job.id == asked.id
    assert ClipRequest.model_validate_json(asked.model_dump_json()) == read_request(job)
    assert "1234" not in job.description
    assert jobs.status(asked.id) is QueryStatus.QUEUED


def test_nothing_of_a_job_is_pickled(jobs, redis_client):
    jobs.submit(request())
    jobs.start_ingest("str_1")
    for key in redis_client.keys("rq:job:*"):
        data = Job.fetch(key.split(b":")[-1].decode(), redis_client, JSONSerializer).data
        assert data.startswith(b"[")
        with pytest.raises(pickle.UnpicklingError):
            pickle.loads(data)


def test_every_key_of_waiting_work_is_bounded(jobs, redis_client):
    for _ in range(400):
        jobs.submit(request())
    assert redis_client.llen(redis_keys.wake(WATCHES)) <= 256
    for key in redis_client.keys("streamer:*"):
        assert redis_client.pttl(key) != -1, key  # it may have ended meanwhile


def test_in_flight_counts_a_watch_a_recording_and_no_query(jobs):
    jobs.submit(request())
    jobs.submit(request())
    jobs.submit(request(RequestKind.FILE, stream_id="str_file"))
    jobs.submit(request(RequestKind.QUERY))
    assert jobs.in_flight("wch_1") == 2
    assert jobs.in_flight("str_file") == 1
    assert jobs.in_flight("str_1") == 0


def test_in_flight_forgets_jobs_that_vanished(jobs, redis_client):
    asked = request()
    jobs.submit(asked)
    redis_client.delete(f"rq:job:{asked.id}")
    assert jobs.in_flight("wch_1") == 0


def test_the_waiting_clips_of_a_watch_are_dropped_and_only_those(jobs, redis_client):
    asked = [request() for _ in range(3)]
    other = request(watch_id="wch_2")
    query = request(RequestKind.QUERY)
    for item in (*asked, other, query):
        jobs.submit(item)
    redis_client.lrem(queue(redis_client, WATCHES).key, 1, asked[0].id)  # a worker took it
    assert jobs.drop_waiting("wch_1") == 2
    assert queue(redis_client, WATCHES).job_ids == [other.id]
    assert queue(redis_client, QUERIES).job_ids == [query.id]
    assert jobs.in_flight("wch_1") == 1
    assert jobs.drop_waiting("wch_1") == 0
    assert not redis_client.exists(f"rq:job:{asked[1].id}")


def test_a_recordings_queued_clips_can_be_dropped_on_detach(jobs):
    jobs.submit(request(RequestKind.FILE, stream_id="str_file"))
    assert jobs.drop_waiting("str_file") == 1
    assert jobs.depths()[FILES] == 0


def test_cancelling_a_waiting_query_gives_its_one_result(jobs, redis_client, settings):
    asked = request(RequestKind.QUERY)
    jobs.submit(asked)
    assert jobs.cancel(asked.id) is QueryStatus.CANCELLED
    assert jobs.cancel(asked.id) is QueryStatus.CANCELLED
    assert jobs.status(asked.id) is QueryStatus.CANCELLED
    assert jobs.depths()[QUERIES] == 0
    entries = Results(redis_client, settings).read("0-0")
    assert [r.error and r.error.code for _, r in entries] == [ErrorCode.CANCELLED]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, QueryStatus.DONE),
        ({"code": "MODEL_FAILED", "message": "It failed."}, QueryStatus.FAILED),
    ],
)
def test_the_status_of_an_answered_request(jobs, redis_client, settings, error, status):
    asked = request(RequestKind.QUERY)
    jobs.submit(asked)
    answer = Result(
        request_id=asked.id,
        kind="error" if error else "answer",
        stream_id="str_1",
        stream_name="yard",
        prompt=asked.prompt,
        error=error,
    )
    Results(redis_client, settings).publish(answer, owner_id=None)
    assert jobs.status(asked.id) is status
    assert jobs.cancel(asked.id) is status


@pytest.mark.parametrize("request_id", ["req_unknown", "not an id", "", "../x"])
def test_an_unknown_request_is_called_so(jobs, request_id):
    for call in (jobs.status, jobs.cancel):
        with pytest.raises(StreamerError) as caught:
            call(request_id)
        assert caught.value.code is ErrorCode.UNKNOWN_QUERY


def test_a_stream_is_queued_once(jobs, redis_client):
    jobs.start_ingest("str_1")
    jobs.start_ingest("str_1")
    assert queue(redis_client, INGEST).job_ids == ["ingest-str_1"]
    jobs.stop_ingest("str_1")
    jobs.stop_ingest("str_1")
    assert jobs.depths()[INGEST] == 0
    jobs.start_ingest("str_1")
    assert jobs.depths()[INGEST] == 1


def test_a_stream_whose_run_failed_can_be_started_again(jobs, redis_client):
    jobs.start_ingest("str_1")
    waiting = queue(redis_client, INGEST)
    waiting.pop_job_id()
    job = waiting.fetch_job("ingest-str_1")
    job.set_status("failed")
    waiting.failed_job_registry.add(job, ttl=60)
    jobs.start_ingest("str_1")
    assert jobs.depths()[INGEST] == 1
    assert waiting.failed_job_registry.get_job_ids() == []


def test_without_workers_there_are_none(jobs):
    assert jobs.workers() == {"ingest": 0, "clips": 0}
