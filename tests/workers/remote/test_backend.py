"""A model worker whose model is a server elsewhere: a real server, which plays each fault."""

import base64
import io
import json
import logging
import math
import socket
import threading
import time
from datetime import timedelta

import pytest
from PIL import Image
from structlog.testing import capture_logs

from nvila_core.resolution.policy import Measures
from streamer.alert_rule import AlertRule
from streamer.doctor.examination import examine
from streamer.doctor.model import model
from streamer.domain.conversation import ChatRequest, FramesPart, TextPart, Turn
from streamer.domain.kinds import RequestKind
from streamer.domain.request import VERIFIES
from streamer.domain.timestamp import utc_now
from streamer.domain.watch import ALERT_FORMAT
from streamer.errors import ErrorCode
from streamer.health.parts import InstallationHealth
from streamer.queues.deltas import Deltas
from streamer.response_format import ChoiceFormat, JsonFormat
from streamer.service import Service
from tests.support.clips import jpeg_of, picture, request, run
from tests.support.scripted_model import MODEL, refused, said
from tests.workers.remote.conftest import KEY
from workers import context
from workers.context import BrokeDown, GiveBack, WorkerContext
from workers.gpu.chat_job import answer_chat
from workers.gpu.clip_job import answer_clip
from workers.gpu.worker import serve_clips


def camera_frames(own, count=3, width=1600, height=800, detail=()):
    now = time.time()
    return [
        own.frames.put(
            "str_1",
            jpeg_of(picture(i, width, height)),
            Measures(width, height, detail, change=0.0),
            time=now - count + i,
            pts=float(i),
        )
        for i in range(count)
    ]


def pictures_in(body):
    (message,) = body["messages"]
    return [
        Image.open(io.BytesIO(base64.b64decode(part["image_url"]["url"].partition(",")[2])))
        for part in message["content"]
        if part["type"] == "image_url"
    ]


def words_in(body):
    (message,) = body["messages"]
    return [part["text"] for part in message["content"] if part["type"] == "text"]


def test_a_clip_is_answered_with_the_frames_of_its_plan(own, server) -> None:
    # given three large frames of which the last has fine detail
    refs = camera_frames(own, 2) + camera_frames(own, 1, detail=(20.0, 20.0, 20.0))

    result = run(own, request(own, refs=refs))

    # then each was sent as a JPEG with the pixels of its grid, in its own proportions
    (body,) = server.asked
    assert body["model"] == MODEL
    shown = pictures_in(body)
    assert [each.format for each in shown] == ["JPEG"] * 3
    for image, planned in zip(shown, result.plan, strict=True):
        columns, rows = planned.grid
        assert image.width / image.height == pytest.approx(2, rel=0.02)
        assert 0.97 < image.width * image.height / (columns * rows * 448**2) <= 1
    assert shown[2].width > shown[0].width
    assert words_in(body)[-1] == "What is there?"
    assert (body["max_tokens"], body["temperature"]) == (6, 0)
    assert server.keys == [f"Bearer {KEY}"]
    # and the result has the server's numbers
    assert (result.text, result.model, result.error) == ("A street.", MODEL, None)
    assert (result.prompt_tokens, result.cached_tokens, result.completion_tokens) == (900, 600, 7)
    assert (result.vision_tokens, result.frames) == (0, 3)
    assert result.generate_ms > 0


def test_a_small_frame_is_sent_as_it_is_stored(own, server) -> None:
    refs = camera_frames(own, 1, 320, 240)

    run(own, request(own, RequestKind.QUERY, refs=refs))

    (shown,) = pictures_in(server.asked[0])
    assert shown.size == (320, 240)
    assert words_in(server.asked[0]) == ["What is there?"]


def test_a_choice_is_asked_by_a_schema_and_has_its_probability(own, server) -> None:
    tokens = [
        {"token": '{"answer": "', "logprob": 0.0, "top_logprobs": []},
        {
            "token": "yes",
            "logprob": -0.105,
            "top_logprobs": [
                {"token": "yes", "logprob": -0.105},
                {"token": "no", "logprob": -2.303},
            ],
        },
    ]
    server.script = lambda _: said('{"answer": "yes"}', logprobs={"content": tokens})
    form = ChoiceFormat(choices=["yes", "no"])

    result = run(own, request(own, response_format=form, logprobs=0))

    (body,) = server.asked
    schema = body["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["answer"]["enum"] == ["yes", "no"]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    assert (result.text, result.data["choice"], result.warning) == ("yes", "yes", None)
    assert result.data["probabilities"] == pytest.approx({"yes": 0.9, "no": 0.1}, abs=0.001)


def test_an_alert_without_log_probabilities_is_a_plain_yes_or_no_and_says_so(own, server) -> None:
    server.script = lambda _: said('{"answer": "yes"}')
    form = ChoiceFormat(choices=["yes", "no"])
    asked = request(own, response_format=form, logprobs=0, alert=AlertRule())

    result = run(own, asked)

    assert (result.data["yes"], result.data["probability"]) == (True, 1.0)
    assert "no log-probabilities" in result.warning


def token(text, p, **others):
    """A token of probability `p`, and what else the server found likely in its place."""
    top = [{"token": t, "logprob": math.log(q)} for t, q in {text: p, **others}.items()]
    return {"token": text, "logprob": math.log(p), "top_logprobs": top}


@pytest.mark.parametrize(
    ("written", "tokens"),
    [
        ('{"answer": "Yes"}', [token('{"answer": "', 1.0), token("Yes", 0.5, No=0.2, yes=0.1)]),
        (
            '{"answer": "Yes"}',
            [token('{"answer": "', 1.0), token("Y", 0.5, N=0.2, yes=0.1), token("es", 1.0)],
        ),
        ("Yes", [token("Yes", 0.5, No=0.2, yes=0.1, Maybe=0.2)]),
    ],
    ids=["one token", "several tokens", "alone"],
)
def test_a_server_whose_model_writes_yes_with_a_capital_is_understood(
    own, server, written, tokens
) -> None:
    server.script = lambda _: said(written, logprobs={"content": tokens})
    form = {"response_format": ALERT_FORMAT, "logprobs": 0, "max_tokens": 1}

    # when it is asked for an alert, and about the hit of a search
    alert = run(own, request(own, alert=AlertRule(), **form))
    hit = {"data": {VERIFIES: "req_1"}}
    verdict = run(own, request(own, RequestKind.QUERY, **form, **hit))

    # then it may write both, and is asked in the words of before
    for body in server.asked:
        schema = body["response_format"]["json_schema"]["schema"]
        assert schema["properties"]["answer"]["enum"] == ["yes", "no", "Yes", "No"]
        assert '"enum": ["yes", "no"]' in words_in(body)[-1]
    # and both spellings count, renormalised
    yes = pytest.approx(0.6 / 0.8)
    assert (alert.error, alert.text, alert.warning) == (None, "yes", None)
    assert alert.data == {"yes": True, "probability": yes}
    assert (verdict.error, verdict.text) == (None, "yes")
    assert verdict.data["probabilities"] == {"yes": yes, "no": pytest.approx(0.2 / 0.8)}
    # while one who asks for a choice gets it word for word
    server.script = lambda _: said('{"answer": "Yes"}')
    assert run(own, request(own, response_format=ALERT_FORMAT)).error.code is ErrorCode.FORM_IGNORED


def test_an_alert_is_a_plain_no_where_the_server_says_no_with_a_capital(own, server) -> None:
    server.script = lambda _: said('{"answer": "No"}')

    result = run(own, request(own, response_format=ALERT_FORMAT, logprobs=0, alert=AlertRule()))

    assert (result.text, result.data) == ("no", {"yes": False, "probability": 0.0})
    assert "no log-probabilities" in result.warning


def test_json_is_asked_and_checked(own, server) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    server.script = lambda _: said('{"n": 3}')
    result = run(own, request(own, response_format=JsonFormat(json_schema=schema)))
    assert server.asked[0]["response_format"]["json_schema"]["schema"] == schema
    assert result.data == {"json": {"n": 3}}

    server.script = lambda _: said("There are three.")
    refusal = run(own, request(own, response_format=JsonFormat(json_schema=schema)))
    assert refusal.error.code is ErrorCode.FORM_IGNORED


@pytest.mark.parametrize(
    "refusal",
    [
        refused(400, "This model's maximum context length is 8192 tokens. However, ..."),
        refused(500, "Context size has been exceeded."),
        refused(400, "At most 1 image(s) may be provided in one request."),
    ],
)
def test_a_prompt_that_is_too_long_there_is_an_error_of_the_request(own, server, refusal) -> None:
    server.script = lambda _: refusal
    result = run(own, request(own))
    assert result.error.code is ErrorCode.PROMPT_TOO_LONG
    assert "about fewer frames" in result.error.message
    assert not own.backend.closed()


def test_a_busy_server_is_asked_again_when_it_says_and_the_job_is_kept(own, server) -> None:
    replies = [refused(429, "slow down", {"Retry-After": "0.2"}), refused(503, "Loading model")]
    server.script = lambda _: replies.pop(0) if replies else said("A street.")

    result = run(own, request(own))

    assert (result.text, len(server.asked)) == ("A street.", 3)
    assert own.backend.stats()["retries"] == 2


def test_no_job_is_taken_while_the_server_wants_to_be_left_alone(own, server) -> None:
    server.script = lambda _: refused(429, "slow down", {"Retry-After": "60"})
    stop = threading.Event()
    outcome: list[str] = []

    def ask() -> None:
        context.enter_slot(stop)
        try:
            answer_clip(asked.model_dump(mode="json"))
        except GiveBack:
            outcome.append("given back")

    asked = request(own, RequestKind.QUERY)
    thread = threading.Thread(target=ask)
    thread.start()
    deadline = time.monotonic() + 120
    while not own.backend.closed():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert own.backend.waiting() == 1  # so that plans are smaller meanwhile
    stop.set()  # the job returns to its queue at once
    thread.join()
    assert outcome == ["given back"]


def test_a_field_that_the_server_does_not_take_is_left_out_from_then_on(own, server) -> None:
    def script(body):
        if "max_tokens" in body:
            return refused(400, "Unsupported parameter: use 'max_completion_tokens' instead.")
        if "temperature" in body:
            return refused(400, "Unsupported value: 'temperature' does not support 0.")
        return said("A street.")

    server.script = script

    assert run(own, request(own)).text == "A street."
    assert run(own, request(own)).text == "A street."

    assert len(server.asked) == 4
    assert server.asked[-1]["max_completion_tokens"] == 6
    assert not {"max_tokens", "temperature"} & server.asked[-1].keys()


def test_an_answer_that_does_not_come_in_time_is_an_error(own, server) -> None:
    done = threading.Event()
    server.script = lambda _: done.wait(60) and said("late")
    own.settings.job_timeout = 0.5
    try:
        result = run(own, request(own, RequestKind.QUERY))
    finally:
        done.set()
    assert result.error.code is ErrorCode.TIMEOUT


def test_a_cancelled_question_is_not_waited_for(own, server) -> None:
    done, cancelled = threading.Event(), threading.Event()

    def script(_):
        cancelled.set()
        done.wait(60)
        return said("late")

    server.script = script
    context.enter_slot(cancelled)
    with pytest.raises(GiveBack):
        answer_clip(request(own, RequestKind.QUERY).model_dump(mode="json"))
    done.set()


def test_a_server_that_ends_over_a_request_costs_it_a_retry(own, server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            connection, _ = listener.accept()
            connection.recv(100)
            connection.close()

        own.backend._server.server.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(BrokeDown):
            answer_clip(request(own, RequestKind.QUERY).model_dump(mode="json"))
    assert own.backend.closed()


def test_a_live_clip_that_waited_too_long_is_not_sent(own, server) -> None:
    old = request(own, created_at=utc_now() - timedelta(seconds=own.settings.job_timeout + 1))
    assert run(own, old).error.code is ErrorCode.TIMEOUT
    assert server.asked == []


@pytest.fixture
def service(remote):
    """A client of the installation."""
    with Service(remote) as client:
        yield client


def worker_of(settings, stopping):
    thread = threading.Thread(target=serve_clips, args=(settings, stopping), daemon=True)
    thread.start()
    return thread


@pytest.fixture
def working(remote):
    """Start a worker of some settings; it ends with the test."""
    stopping = threading.Event()
    threads = []

    def start(settings=remote):
        threads.append(worker_of(settings, stopping))

    yield start
    stopping.set()
    for thread in threads:
        thread.join()
    context.install(None)


def part(service, connections, name="model worker"):
    health = InstallationHealth(connections, service.jobs, lambda: service.timeline)
    return next(part for part in health.parts(ask_database=False) if part.name == name)


def submit(service, **fields):
    stand_in = WorkerContext(settings=service.settings, connections=service.connections)
    asked = request(stand_in, RequestKind.QUERY, **fields)
    service.jobs.submit(asked)
    return asked


def test_a_server_that_is_away_is_waited_for_and_health_says_so(
    remote, server, service, connections, working, eventually
) -> None:
    # given a server that does not run, and a question
    server.stop()
    remote.lease = 2.0
    working()
    eventually(lambda: service.jobs.served.workers(), message="the worker did not start")
    asked = submit(service)
    eventually(lambda: not part(service, connections).up)
    # then nothing is lost, and the missing part is named
    assert "does not answer" in part(service, connections).message
    assert service.queue.get(asked.id) is None

    server.restart()

    # then the question is answered, and all is well
    eventually(lambda: service.queue.get(asked.id))
    assert service.queue.get(asked.id).text == "A street."
    eventually(lambda: part(service, connections).up)


def test_a_wrong_key_is_said_once_and_the_question_waits(
    remote, server, service, connections, working, eventually
) -> None:
    server.script = lambda _: refused(401, f"Incorrect API key provided: {KEY}")
    server.models = refused(401, f"Incorrect API key provided: {KEY}")
    remote.lease = 2.0
    with capture_logs() as logs:
        working()
        eventually(lambda: service.jobs.served.workers())
        asked = submit(service)
        eventually(lambda: not part(service, connections).up)

    message = part(service, connections).message
    assert "refuses the key" in message
    assert "STREAMER_MODEL_API_KEY" in message
    loud = [line for line in logs if line["log_level"] == "error"]
    assert len(loud) == 1
    # and the key shows nowhere
    assert KEY not in message + json.dumps(logs, default=str)
    everything = [connections.main.dump(key) or b"" for key in connections.main.scan_iter()]
    assert not any(KEY.encode() in value for value in everything)
    assert service.queue.get(asked.id) is None


def test_a_model_that_the_server_lacks_is_said(own, server) -> None:
    server.script = lambda _: refused(404, f"The model `{MODEL}` does not exist.")
    with pytest.raises(GiveBack):
        answer_clip(request(own, RequestKind.QUERY).model_dump(mode="json"))
    assert own.backend.closed()
    assert "has no model" in own.backend.stats()["trouble"]


def test_doctor_looks_for_the_model_in_the_list_of_its_server(remote, server) -> None:
    def state():
        (found,) = examine(remote, examinations={"model": lambda s: model(s, time.monotonic() + 9)})
        return found.state, found.message

    assert state() == ("ok", f"{MODEL} is served at {server.url}.")
    server.models = ["another"]
    assert state()[0] == "warn"
    assert "it has another" in state()[1]
    server.models = refused(401, f"Incorrect API key provided: {KEY}")
    assert state()[0] == "fail"
    assert KEY not in state()[1]
    server.stop()
    assert state()[0] == "fail"
    assert "does not answer" in state()[1]


def test_the_key_is_not_in_the_debug_log_of_the_client(own, server, caplog) -> None:
    with caplog.at_level(logging.DEBUG):
        run(own, request(own))
    assert server.asked
    assert KEY not in caplog.text


def chat_about(own, **fields):
    """A chat of two turns with a picture each, and a system prompt."""
    refs = camera_frames(own, 2)
    now = utc_now()
    turns = [
        Turn(role="system", content=[TextPart(text="Be brief.")]),
        Turn(role="user", content=[FramesPart(count=1, detail="low"), TextPart(text="And here?")]),
        Turn(role="assistant", content=[TextPart(text="A car.")]),
        Turn(role="user", content=[TextPart(text="And now?"), FramesPart(count=1, detail="high")]),
    ]
    return ChatRequest(
        start=now, end=now, prompt="And now?", frames=refs, turns=turns, max_tokens=20, **fields
    )


def test_a_chat_is_continued_with_its_turns_and_pictures(own, server) -> None:
    drawn = {"token": "A", "logprob": -0.5, "top_logprobs": [{"token": "The", "logprob": -1.0}]}
    server.script = lambda _: said("A van.", logprobs={"content": [drawn]})
    chat = chat_about(own, temperature=0.5, seed=7, stop=["END"], logprobs=2)

    own.jobs.submit(chat)
    answer_chat(chat.model_dump(mode="json"))

    (body,) = server.asked
    kinds = [
        [part["type"] for part in m["content"]] if isinstance(m["content"], list) else m["content"]
        for m in body["messages"]
    ]
    assert kinds == ["Be brief.", ["image_url", "text"], "A car.", ["text", "image_url"]]
    assert (body["temperature"], body["seed"], body["stop"]) == (0.5, 7, ["END"])
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    # the second picture was to be looked at closely
    result = own.results.get(chat.id)
    assert result.text == "A van."
    assert result.plan[0].grid == (1, 1)
    assert result.plan[1].grid != (1, 1)
    # and those who wait for the answer get it, with its log-probabilities
    ((_, delta),) = Deltas(own.connections.main).read(chat.id)
    assert (delta.text, bytes(delta.tokens[0].bytes)) == ("A van.", b"A")
    assert bytes(delta.tokens[0].top[0].bytes) == b"The"


def test_any_json_is_asked_of_a_chat_as_an_object(own, server) -> None:
    server.script = lambda _: said('{"a": 1}')
    chat = chat_about(own, response_format=JsonFormat(json_schema={}))
    own.jobs.submit(chat)
    answer_chat(chat.model_dump(mode="json"))
    (body,) = server.asked
    assert body["response_format"] == {"type": "json_object"}
    assert body["messages"][-1]["content"][-1]["text"] == "Answer with JSON."
    assert own.results.get(chat.id).data == {"json": {"a": 1}}
