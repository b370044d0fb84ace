"""The clip job with a real engine and a real Redis, in this process."""

import threading
import time
from datetime import timedelta

import cv2
import numpy as np
import pytest

from nvila_core import NVILA, Engine, SamplingParams, Video
from streamer import redis_keys
from streamer.domain import ClipRequest, QueryStatus, RequestKind, utc_now
from streamer.errors import ErrorCode
from workers import context
from workers.clip import answer, publish_failure
from workers.context import Abandon, GiveBack, WorkerContext


@pytest.fixture(scope="module")
def model(random_checkpoint):
    return NVILA.from_pretrained(random_checkpoint)


@pytest.fixture
def own(settings, connections, model):
    """This process as a gpu worker."""
    with Engine(model) as engine:
        installed = WorkerContext(
            settings=settings, connections=connections, engine=engine, model_name=model.name
        )
        context.install(installed)
        context.enter_slot(threading.Event())
        yield installed
    context.install(None)


def picture(seed=0, width=320, height=240):
    """RGB uint8 [height, width, 3] that survives JPEG almost unharmed."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def jpeg_of(image):
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[1].tobytes()


def frames(own, count=4, **kwargs):
    now = time.time()
    return [
        own.frames.add(
            "str_1",
            jpeg=jpeg_of(picture(i, **kwargs)),
            time=now - count + i,
            pts=float(i),
            width=320,
            height=240,
            change=0.0,
            decode_ms=1.5,
        )
        for i in range(count)
    ]


def request(own, kind=RequestKind.WATCH, refs=None, **kwargs):
    now = utc_now()
    values = {
        "kind": kind,
        "stream_id": "str_1",
        "stream_name": "yard",
        "watch_id": "wch_1" if kind is RequestKind.WATCH else None,
        "start": now - timedelta(seconds=4),
        "end": now,
        "prompt": "What is there?",
        "frames": frames(own) if refs is None else refs,
        "max_tokens": 6,
    }
    return ClipRequest(**values | kwargs)


def run(own, asked):
    """Submit a request, run its job as a worker would, and return the result."""
    own.jobs.submit(asked)
    answer(asked.model_dump(mode="json"))
    return own.results.get(asked.id)


def test_a_clip_is_answered_with_what_it_cost(own, model):
    asked = request(own, data={"media_start": 0.0})
    result = run(own, asked)
    assert result.kind == "caption"
    assert result.error is None
    assert (result.request_id, result.watch_id, result.stream_name) == (asked.id, "wch_1", "yard")
    assert abs(result.end - asked.end) < timedelta(milliseconds=1)
    assert result.data == {"media_start": 0.0}
    assert result.model == "tiny-random"
    assert (result.frames, result.tiles, result.completion_tokens) == (4, 4, 6)
    assert result.finish_reason == "length"
    assert result.vision_tokens == 36
    assert result.prompt_tokens > result.vision_tokens
    assert result.decode_ms == pytest.approx(6.0)
    assert result.encode_ms > 0
    assert result.generate_ms > 0
    assert result.queue_ms > 0
    assert own.results.read("0-0")[0][1] == result
    assert own.jobs.in_flight("wch_1") == 0


def test_the_model_is_shown_the_frames_as_they_are_in_rgb(own, model):
    """The answer is the one that the model alone gives to the same pictures."""
    refs = frames(own, 3)
    shown = [
        cv2.cvtColor(
            cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB
        )
        for jpeg in own.frames.load(refs)
    ]
    assert np.abs(shown[0].astype(int) - picture(0)).mean() < 8  # not BGR
    alone = model.generate(
        model.prepare([Video(shown, sampled=True), "What is there?"], num_video_frames=3),
        SamplingParams(max_tokens=6),
    )
    result = run(own, request(own, refs=refs))
    assert result.text == alone.text
    assert result.prompt_tokens == alone.usage.prompt_tokens


def test_one_frame_is_an_image_and_tiled(own):
    result = run(own, request(own, RequestKind.QUERY, refs=frames(own, 1, width=640, height=320)))
    assert result.kind == "answer"
    assert result.frames == 1
    assert result.tiles > 1


def test_live_latency_counts_from_the_newest_frame_and_a_querys_from_its_submission(own):
    # given frames captured a while ago
    refs = frames(own, 2)
    newest = refs[-1].time
    time.sleep(0.3)
    live = run(own, request(own, refs=refs))
    query = run(own, request(own, RequestKind.QUERY, refs=refs))
    file = run(own, request(own, RequestKind.FILE, refs=refs))
    assert live.total_ms == pytest.approx(1000 * (live.created_at.timestamp() - newest), abs=2)
    assert live.total_ms > 1000
    assert query.total_ms < live.total_ms - 1000
    assert file.total_ms < live.total_ms - 1000
    assert query.total_ms >= query.queue_ms + query.encode_ms + query.generate_ms


def test_frames_that_expired_are_an_error_result(own, redis_client):
    asked = request(own)
    redis_client.delete(redis_keys.jpeg("str_1", asked.frames[1].id))
    result = run(own, asked)
    assert result.kind == "error"
    assert result.error.code is ErrorCode.FRAMES_EXPIRED
    assert own.jobs.in_flight("wch_1") == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"prompt": "  "}, ErrorCode.PROMPT_EMPTY),
        ({"frames": []}, ErrorCode.NO_FRAMES),
        ({"prompt": "word " * 5000}, ErrorCode.PROMPT_TOO_LONG),
    ],
)
def test_a_request_that_cannot_be_answered_says_why(own, change, code):
    result = run(own, request(own, RequestKind.QUERY, **change))
    assert result.kind == "error"
    assert result.error.code is code
    assert own.jobs.status(result.request_id) is QueryStatus.FAILED


def test_a_damaged_frame_is_an_error_result(own, redis_client):
    asked = request(own)
    redis_client.set(redis_keys.jpeg("str_1", asked.frames[0].id), b"no jpeg", ex=60)
    assert run(own, asked).error.code is ErrorCode.INTERNAL


def test_a_model_that_fails_fails_one_request_only(own, monkeypatch):
    # given a model whose weights break for one forward pass
    prefill = own.engine.model.prefill
    calls = []

    def broken_once(*args):
        calls.append(args)
        if len(calls) == 1:
            raise RuntimeError("device-side assert at /secret/path")
        return prefill(*args)

    monkeypatch.setattr(own.engine.model, "prefill", broken_once)
    first, second = run(own, request(own)), run(own, request(own))
    assert first.error.code is ErrorCode.MODEL_FAILED
    assert "/secret/path" not in first.error.message
    assert second.error is None


def test_an_answer_that_is_there_already_is_not_computed_again(own):
    asked = request(own)
    run(own, asked)
    before = own.engine.stats()["submitted"]
    answer(asked.model_dump(mode="json"))
    assert own.engine.stats()["submitted"] == before
    assert len(own.results.read("0-0")) == 1


def test_a_clip_that_takes_too_long_times_out(own):
    own.settings.job_timeout = 0.01
    own.engine.step = lambda: time.sleep(0.05) or True  # an engine that never gets there
    result = run(own, request(own))
    assert result.error.code is ErrorCode.TIMEOUT
    assert "job_timeout" in result.error.message


def test_a_job_that_is_no_longer_wanted_gives_itself_back_unanswered(own):
    cancelled = threading.Event()
    cancelled.set()
    context.enter_slot(cancelled)
    own.engine.step = lambda: time.sleep(0.05) or True
    asked = request(own)
    with pytest.raises(GiveBack):
        answer(asked.model_dump(mode="json"))
    assert own.results.get(asked.id) is None


def test_a_dead_engine_stops_the_worker_and_leaves_the_request_to_others(own):
    own.engine.stop()
    asked = request(own)
    with pytest.raises(Abandon):
        answer(asked.model_dump(mode="json"))
    assert own.stopping.is_set()
    assert "engine" in own.failure
    assert own.results.get(asked.id) is None


def test_a_lost_job_gets_its_error_result(own, redis_client):
    from rq.job import Job
    from rq.serializers import JSONSerializer

    asked = request(own)
    own.jobs.submit(asked)
    job = Job.fetch(asked.id, redis_client, JSONSerializer)
    for _ in range(2):
        publish_failure(job, ErrorCode.WORKER_LOST, "The workers died.")
    assert [r.error.code for _, r in own.results.read("0-0")] == [ErrorCode.WORKER_LOST]
    assert own.jobs.in_flight("wch_1") == 0
