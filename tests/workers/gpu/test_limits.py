"""Jobs that another program, or an earlier version, put into the queue, and that are too large."""

import json
import zlib
from typing import Any

import pytest
from rq import Queue
from rq.exceptions import DeserializationError
from rq.job import Job
from rq.serializers import JSONSerializer

from streamer.domain.kinds import RequestKind
from streamer.errors import ErrorCode
from streamer.limits import (
    MAX_ANSWER_TOKENS,
    MAX_CHOICES,
    MAX_CLIP_FRAMES,
    MAX_DATA,
    MAX_JOB_BYTES,
    MAX_PROMPT,
)
from streamer.queues.jobs import CLIP_JOB
from tests.support.clips import request
from workers.gpu.clip_job import answer_clip, publish_failure
from workers.rq.job import PlainJob


@pytest.fixture
def no_model(own, monkeypatch):
    """No request reaches the tokenizer or the engine."""

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("the request reached the model")

    monkeypatch.setattr(own.engine, "submit", fail)


def answer(own, fields: dict[str, Any], request_id: str):
    """Answer a job as a worker does, and return its result."""
    answer_clip({**fields, "id": request_id})
    return own.results.get(request_id)


@pytest.fixture
def fields(own):
    return request(own, RequestKind.QUERY).model_dump(mode="json")


FRAME_COUNT = MAX_CLIP_FRAMES + 1


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"prompt": "x" * (MAX_PROMPT + 1)}, "PROMPT_TOO_LONG", "32,768"),
        ({"prompt": "what is there? " * 4_000_000}, "PROMPT_TOO_LONG", "60,000,000"),
        ({"prompt": "  "}, "PROMPT_EMPTY", "empty"),
        ({"max_tokens": MAX_ANSWER_TOKENS + 1}, "INVALID_REQUEST", "4097 tokens"),
        ({"max_tokens": 10**18}, "INVALID_REQUEST", "tokens"),
        ({"data": {"note": "x" * MAX_DATA}}, "INVALID_REQUEST", "data"),
        ({"data": {"note": "x" * 10 * MAX_DATA}}, "INVALID_REQUEST", "data"),
        (
            {"response_format": {"type": "choice", "choices": [f"{i:0300d}" for i in range(256)]}},
            "INVALID_REQUEST",
            "76,800",
        ),
        (
            {
                "response_format": {
                    "type": "choice",
                    "choices": [str(i) for i in range(MAX_CHOICES + 1)],
                }
            },
            "RECORD_UNREADABLE",
            "at most 256",
        ),
        ({"frames": "all"}, "RECORD_UNREADABLE", "frames"),
        ({"id": None, "kind": "poem"}, "RECORD_UNREADABLE", "kind"),
    ],
)
def test_a_job_that_is_too_large_gets_an_error_result_and_no_model(
    own, no_model, fields, change, code, reason
):
    result = answer(own, {**fields, **change}, "qry_large")

    assert result.kind == "error"
    assert result.error.code == code
    assert reason in result.error.message
    assert len(result.model_dump_json()) < 40_000  # Redis and the timeline keep it


def test_the_number_of_frames_has_a_limit(own, no_model, fields):
    refs = [{**fields["frames"][0], "id": f"{i}-0"} for i in range(FRAME_COUNT)]

    result = answer(own, {**fields, "frames": refs}, "qry_frames")

    assert result.error.code is ErrorCode.INVALID_REQUEST
    assert "257 frames" in result.error.message
    assert len(result.frame_times) == MAX_CLIP_FRAMES


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"allOf": [{"pattern": f".*{chr(97 + i)}.*"} for i in range(16)]}, "cannot be followed"),
        ({"type": "integer", "multipleOf": 99_999_999}, "64 MiB"),
        ({"allOf": [{"pattern": "a"}] * 17}, "allOf"),
        ({"anyOf": [{"pattern": "a"}] * 65}, "65 patterns"),
    ],
)
def test_a_schema_that_costs_too_much_fails_its_request_alone(own, fields, schema, reason):
    form = {"type": "json_schema", "json_schema": schema}

    failed = answer(own, {**fields, "response_format": form}, "qry_costly")
    answered = answer(own, fields, "qry_plain")

    assert failed.error.code is ErrorCode.INVALID_REQUEST
    assert reason in failed.error.message
    assert answered.error is None


def test_what_reaches_the_limits_is_answered(own, fields):
    change = {
        "prompt": "?" + " " * (MAX_PROMPT - 1),  # the chat template strips it
        "data": {"note": "x" * (MAX_DATA - len('{"note": ""}'))},
        "max_tokens": 4,
    }

    assert answer(own, {**fields, **change}, "qry_most").error is None


def stored(redis_client, args: Any, *, compressed: bool = True) -> PlainJob:
    """Store a job of another program, and return it as a worker reads it."""
    queue = Queue("queries", connection=redis_client, serializer=JSONSerializer)
    job = queue.enqueue_call(CLIP_JOB, args=({},), job_id="qry_foreign")
    data = json.dumps([CLIP_JOB, None, args, {}]).encode()
    redis_client.hset(job.key, "data", zlib.compress(data) if compressed else data)
    fetched: Job = PlainJob.fetch(job.id, redis_client, JSONSerializer)
    assert isinstance(fetched, PlainJob)
    return fetched


@pytest.mark.parametrize("compressed", [True, False])
def test_a_job_is_read_up_to_its_limit_of_bytes(own, redis_client, compressed):
    # given jobs of a few kilobytes in Redis that hold a megabyte more than allowed, and less
    long = {"prompt": "x" * (MAX_JOB_BYTES + 2**20)}
    large = stored(redis_client, [long], compressed=compressed)
    small = stored(redis_client, [{"prompt": "x" * 2**20}], compressed=compressed)
    # then the large one was not read
    assert (large.too_large, small.too_large) == (True, False)
    assert len(small.args[0]["prompt"]) == 2**20
    with pytest.raises(DeserializationError):
        _ = large.func_name
    # and gets a result that says so
    publish_failure(large, ErrorCode.INTERNAL, "The job failed.")
    result = own.results.get("qry_foreign")
    assert result.error.code is ErrorCode.INVALID_REQUEST
    assert "4,194,304 bytes" in result.error.message


def read_bomb(redis_client, bomb: bytes) -> tuple[PlainJob, int]:
    """Read a job with such data; return it, and the most bytes that this took."""
    import tracemalloc

    assert len(bomb) < 2**20
    job = stored(redis_client, [{}])
    redis_client.hset(job.key, "data", bomb)
    tracemalloc.start()
    try:
        read = PlainJob.fetch(job.id, redis_client, JSONSerializer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(read, PlainJob)
    return read, peak


def test_a_bomb_of_zeros_is_not_unpacked(redis_client):
    read, peak = read_bomb(redis_client, zlib.compress(b"0" * (256 << 20)))
    assert read.too_large
    assert peak < 4 * MAX_JOB_BYTES


def test_what_was_packed_twice_is_unpacked_once(redis_client):
    # given a bomb that is packed once more, and so is small when it is unpacked
    bomb = zlib.compress(b"0" * (256 << 20))
    read, peak = read_bomb(redis_client, zlib.compress(bomb))
    # then what is in it stays packed, and is no call
    assert peak < 4 * MAX_JOB_BYTES
    with pytest.raises(DeserializationError):
        _ = read.func_name


def test_a_large_job_of_a_known_query_ends_that_query(own, redis_client, fields):
    # given a query of the service, whose job has grown
    from streamer import redis_keys
    from streamer.domain.query import Query
    from streamer.domain.request import ClipRequest

    clip = ClipRequest.model_validate(fields)
    redis_client.set(redis_keys.query(clip.id), Query.of(clip).model_dump_json())
    own.jobs.submit(clip)
    redis_client.hset(Job.key_for(clip.id), "data", b"x" * (MAX_JOB_BYTES + 1))
    # when a worker takes it
    job = PlainJob.fetch(clip.id, redis_client, JSONSerializer)
    publish_failure(job, ErrorCode.INTERNAL, "The job failed.")
    # then its result names its stream
    result = own.results.get(clip.id)
    assert (result.stream_name, result.prompt) == ("yard", "What is there?")
    assert "4,194,304 bytes" in result.error.message
