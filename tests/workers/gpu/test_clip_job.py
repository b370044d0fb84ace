"""The clip job with a real engine and a real Redis, in this process."""

import json
from datetime import timedelta

import cv2
import numpy as np
import pytest
import torch
from rq.job import Job
from rq.serializers import JSONSerializer

from nvila_core import NVILA, Engine, SamplingParams, Video
from nvila_core.demo import CHECKPOINT
from streamer import redis_keys
from streamer.alert_rule import AlertRule
from streamer.domain.kinds import RequestKind
from streamer.domain.query import QueryStatus
from streamer.domain.request import VERIFIES
from streamer.domain.watch import ALERT_FORMAT
from streamer.errors import ErrorCode
from streamer.frames.jpeg import from_jpeg
from streamer.queues.deltas import Deltas
from streamer.response_format import ChoiceFormat, JsonFormat
from tests.support.clips import frames, picture, request, run
from workers.gpu.clip_job import answer_clip, publish_failure
from workers.gpu.engine_backend import EngineBackend


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


def test_the_model_sees_the_frames_in_rgb(own, model):
    """The answer is that of the model alone to the same pictures."""
    refs = frames(own, 3)
    shown = []
    for jpeg in own.frames.load(refs):
        decoded = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert decoded is not None
        shown.append(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB))
    assert np.abs(shown[0].astype(int) - picture(0)).mean() < 8  # not BGR
    alone = model.generate(
        model.prepare([Video(shown, sampled=True), "What is there?"], num_video_frames=3),
        SamplingParams(max_tokens=6),
    )
    result = run(own, request(own, refs=refs))
    assert result.text == alone.text
    assert result.prompt_tokens == alone.usage.prompt_tokens


def test_one_frame_is_an_image_and_tiled_as_published_without_a_policy(own):
    own.settings.policy = "native"
    result = run(own, request(own, RequestKind.QUERY, refs=frames(own, 1, width=640, height=320)))
    assert result.kind == "answer"
    assert result.frames == 1
    assert result.tiles > 1


def test_live_latency_counts_from_the_newest_frame_and_that_of_a_query_from_its_submission(own):
    # given frames captured a while ago
    refs = [ref.model_copy(update={"time": ref.time - 60}) for ref in frames(own, 2)]
    newest = refs[-1].time
    live = run(own, request(own, refs=refs))
    query = run(own, request(own, RequestKind.QUERY, refs=refs))
    file = run(own, request(own, RequestKind.FILE, refs=refs))
    assert live.total_ms == pytest.approx(1000 * (live.created_at.timestamp() - newest), abs=2)
    assert live.total_ms > 60_000
    assert query.total_ms < live.total_ms - 50_000
    assert file.total_ms < live.total_ms - 50_000
    assert query.total_ms >= query.queue_ms + query.encode_ms + query.generate_ms


@pytest.mark.parametrize(
    "newer",
    [
        {"response_format": {"type": "boxes"}},
        {"kind": "search"},
        {"frames": "video://1"},
        {"watch_id": None, "kind": "query", "max_tokens": 1 << 20, "stream_name": ["yard"]},
    ],
)
def test_a_request_that_only_a_newer_worker_can_read_ends_with_an_error(own, newer):
    # given a job of a newer release
    asked = request(own)
    own.jobs.submit(asked)
    stored = asked.model_dump(mode="json") | newer
    # when this worker takes it, or gives it up
    answer_clip(stored)
    job = Job.fetch(asked.id, own.connections.main, JSONSerializer)
    job._args = [stored]
    publish_failure(job, ErrorCode.WORKER_LOST, "The worker died.")
    # then the request has its one result, which says so
    ((_, result),) = own.results.read("0-0")
    assert result == own.results.get(asked.id)
    assert (result.request_id, result.prompt) == (asked.id, asked.prompt)
    assert result.error.code is ErrorCode.RECORD_UNREADABLE
    assert next(iter(newer)) in result.error.message or "stream_name" in result.error.message
    if stored["watch_id"] is not None:
        assert own.jobs.in_flight("wch_1") == 0


def test_a_request_with_unknown_fields_is_answered(own):
    asked = request(own)
    stored = asked.model_dump(mode="json") | {"lens": {"fov": 1}}
    stored["frames"] = [frame | {"lens": 1} for frame in stored["frames"]]
    own.jobs.submit(asked)
    answer_clip(stored)
    result = own.results.get(asked.id)
    assert (result.error, result.frames) == (None, 4)


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
def test_a_request_that_cannot_be_answered_gets_the_reason(own, change, code):
    result = run(own, request(own, RequestKind.QUERY, **change))
    assert result.kind == "error"
    assert result.error.code is code
    assert own.jobs.status(result.request_id) is QueryStatus.FAILED


def test_an_existing_answer_is_not_computed_again(own):
    asked = request(own)
    run(own, asked)
    before = own.engine.stats()["submitted"]
    answer_clip(asked.model_dump(mode="json"))
    assert own.engine.stats()["submitted"] == before
    assert len(own.results.read("0-0")) == 1


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


def test_an_answer_in_a_response_format_is_parsed_into_the_result(own):
    schema = {"type": "array", "items": {"enum": ["car", "person"]}, "minItems": 1, "maxItems": 2}
    window = {"media_start": 0.0}
    json_format = JsonFormat(json_schema=schema)
    as_json = run(own, request(own, response_format=json_format, data=window, max_tokens=200))
    choice_format = ChoiceFormat(choices=["yes", "no"])
    choice = run(own, request(own, response_format=choice_format, max_tokens=20))
    assert as_json.error is None
    assert as_json.data == {"media_start": 0.0, "json": json.loads(as_json.text)}
    assert set(as_json.data["json"]) <= {"car", "person"}
    assert choice.data == {"choice": choice.text}
    assert choice.text in ("yes", "no")
    assert (as_json.finish_reason, choice.finish_reason) == ("stop", "stop")


@pytest.mark.parametrize(
    ("wanted", "began"),
    [
        (JsonFormat(json_schema={"enum": ["too long"]}), '"t'),
        (ChoiceFormat(choices=["too long"]), "to"),
    ],
    ids=["json", "choice"],
)
def test_an_answer_that_was_cut_short_is_an_error_with_what_there_was(own, wanted, began):
    window = {"media_start": 0.0}
    result = run(own, request(own, response_format=wanted, data=window, max_tokens=2))
    assert result.error.code is ErrorCode.FORM_UNFINISHED
    assert result.kind == "error"
    assert "cut after 2 tokens" in result.error.message
    assert (result.text, result.finish_reason, result.data) == (began, "length", window)
    assert result.completion_tokens == 2
    assert own.jobs.status(result.request_id) is QueryStatus.FAILED


def test_a_schema_that_cannot_be_followed_is_an_error_result(own):
    result = run(own, request(own, response_format=JsonFormat(json_schema={"not": {}})))
    assert result.error.code is ErrorCode.INVALID_REQUEST
    assert "cannot be followed" in result.error.message


def test_a_choice_has_the_probability_of_each_if_the_request_asks_for_it(own, model):
    # given
    refs, form = frames(own, 2), ChoiceFormat(choices=["yes", "no"])
    # when
    asked = run(own, request(own, refs=refs, response_format=form, logprobs=0))
    plain = run(own, request(own, refs=refs, response_format=form))
    # then it is that of the model's own answer to the same pictures, but for how a JPEG is reduced
    shown = [
        cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR_RGB)
        for jpeg in own.frames.load(refs)
    ]
    alone = model.generate(
        model.prepare([Video(shown, sampled=True), "What is there?"], num_video_frames=2),
        SamplingParams(choice=["yes", "no"], logprobs=0),
    )
    assert asked.data["probabilities"] == pytest.approx(alone.choice_probabilities, abs=0.02)
    assert sum(asked.data["probabilities"].values()) == pytest.approx(1)
    assert (
        asked.text == plain.text == max(*asked.data["probabilities"].items(), key=lambda p: p[1])[0]
    )
    assert plain.data == {"choice": plain.text}


def test_the_answer_to_a_query_is_published_in_pieces_while_it_is_generated(own):
    # given
    deltas = Deltas(own.connections.main)
    # when
    query = run(own, request(own, RequestKind.QUERY, logprobs=2, max_tokens=12))
    caption = run(own, request(own))
    # then
    pieces = [delta for _, delta in deltas.read(query.request_id)]
    assert "".join(delta.text for delta in pieces) == query.text
    tokens = [token for delta in pieces for token in delta.tokens]
    stops = own.engine.model.tokenizer.stop_ids
    assert len(tokens) == query.completion_tokens - (query.finish_reason == "stop" and bool(stops))
    assert all(len(token.top) == 2 and token.logprob <= token.top[0].logprob for token in tokens)
    assert deltas.read(caption.request_id) == []


def test_an_alert_is_observed_by_its_probability(own, model):
    # given a window of an alert, as an ingest worker asks about it
    rule = AlertRule()
    asked = request(
        own, data={"media_start": 0.0}, alert=rule, response_format=ALERT_FORMAT, logprobs=0
    )
    result = run(own, asked)
    # then its result has the probability that the model gives to yes, however it spells it
    shown = [from_jpeg(jpeg, 320, 240) for jpeg in own.frames.load(asked.frames)]
    alone = model.generate(
        model.prepare([Video(shown, sampled=True), "What is there?"], num_video_frames=4),
        SamplingParams(max_tokens=6, choice=["yes", "no", "Yes", "No"], logprobs=0),
    )
    assert alone.choice_probabilities is not None
    expected = alone.choice_probabilities["yes"] + alone.choice_probabilities["Yes"]
    assert 0 < expected < 1
    assert result.kind == "alert"
    assert result.data == {
        "media_start": 0.0,
        "yes": expected >= 0.5,
        "probability": pytest.approx(expected, abs=0.01),
    }
    assert result.text == ("yes" if expected > 0.5 else "no")
    # and a window without an answer is an error, not a no
    own.frames.discard("str_1")
    lost = request(own, refs=asked.frames, alert=rule, response_format=ALERT_FORMAT, logprobs=0)
    assert run(own, lost).kind == "error"


QUESTION = "Is there a car?"


@pytest.fixture(scope="module")
def demo():
    """The model that the package ships, which answers yes and no with one token each."""
    return NVILA.from_pretrained(CHECKPOINT)


@pytest.fixture(scope="module")
def capital():
    """The same model, taught to answer Yes, in two tokens, and No."""
    taught = NVILA.from_pretrained(CHECKPOINT)
    encode, table = taught.tokenizer.encode, taught.language.embedding_table
    (yes,), (no,), (y, _), (capital_no,) = map(encode, ("yes", "no", "Yes", "No"))
    assert {yes, no, y, capital_no}.isdisjoint(encode(QUESTION))
    with torch.no_grad():
        table[[yes, y, no, capital_no]] = table[[y, yes, capital_no, no]]
    return taught


@pytest.fixture
def writes_capitals(own, capital, monkeypatch):
    """This process as a model worker whose model prefers Yes and No."""
    with Engine(capital) as engine:
        monkeypatch.setattr(own, "engine", engine)
        monkeypatch.setattr(own, "backend", EngineBackend(engine, own.settings))
        yield own


def shares_of(model, asked, own, choices):
    shown = [
        from_jpeg(jpeg, frame.width, frame.height)
        for frame, jpeg in zip(asked.frames, own.frames.load(asked.frames), strict=True)
    ]
    parts = [Video(shown, sampled=True), asked.prompt]
    params = SamplingParams(choice=choices, logprobs=0)
    return model.generate(
        model.prepare(parts, num_video_frames=len(shown)), params
    ).choice_probabilities


@pytest.mark.parametrize("max_tokens", [1, 8])
def test_a_model_that_writes_capitals_is_understood(writes_capitals, demo, capital, max_tokens):
    # given a model that knows as much as another, but begins its answers with a capital
    own = writes_capitals
    asked = request(
        own,
        prompt=QUESTION,
        alert=AlertRule(),
        response_format=ALERT_FORMAT,
        logprobs=0,
        max_tokens=max_tokens,
    )
    spelled = shares_of(capital, asked, own, ["yes", "no", "Yes", "No"])
    assert spelled["Yes"] + spelled["No"] > 0.9
    # when it is asked for an alert, and about the hit of a search
    alert = run(own, asked)
    verdict = run(
        own,
        request(
            own,
            RequestKind.QUERY,
            refs=asked.frames,
            prompt=QUESTION,
            response_format=ALERT_FORMAT,
            logprobs=0,
            max_tokens=max_tokens,
            data={VERIFIES: "req_1"},
        ),
    )
    # then both have the probability of the model that writes small letters, as they always had it
    expected = shares_of(demo, asked, own, ["yes", "no"])
    yes = pytest.approx(expected["yes"], abs=0.02)
    likely = max(expected, key=expected.get)
    assert (alert.error, alert.text) == (None, likely)
    assert alert.data == {"yes": likely == "yes", "probability": yes}
    assert (verdict.error, verdict.text) == (None, likely)
    assert verdict.data == {
        VERIFIES: "req_1",
        "choice": likely,
        "probabilities": {"yes": yes, "no": pytest.approx(expected["no"], abs=0.02)},
    }
    # and what a user's own choices are, stays word for word
    form = ChoiceFormat(choices=["yes", "no"])
    own_choice = run(own, request(own, response_format=form, max_tokens=8, refs=asked.frames))
    assert own_choice.text in form.choices
