"""The OpenAI-compatible endpoint, with OpenAI's own Python package."""

import base64
import functools
import io
import json
import math
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from streamer import redis_keys
from streamer.api.examples import EXAMPLES
from streamer.domain.query import QueryStatus
from tests.support.chat_service import data_url, shown
from tests.support.videos import write_video

DOCS = Path(__file__).parents[3] / "docs" / "openai.md"


@pytest.fixture(scope="module")
def openai():
    """The package, which takes seconds to import: only the processes that run these tests do."""
    import openai

    return openai


@pytest.fixture(scope="module")
def ai(openai, chat_service):
    return openai.OpenAI(base_url=chat_service.url, api_key="unused", max_retries=0, timeout=120)


def user(*content):
    texts = [{"type": "text", "text": c} if isinstance(c, str) else c for c in content]
    return {"role": "user", "content": texts}


def ask(ai, *content, **options):
    """Ask about texts and pictures; return the answer as the client gives it."""
    fields = {"model": "demo", "messages": [user(*content)], "max_tokens": 8} | options
    return ai.chat.completions.create(**fields)


def tiles(answer):
    return answer.usage.model_extra["tiles"]


def test_the_models_and_each_camera_are_listed(openai, ai):
    models = {model.id: model for model in ai.models.list()}
    assert set(models) >= {"stream/gate", "stream/yard"}
    name = next(iter(models))
    assert not name.startswith("stream/")
    assert models[name].object == "model"
    assert models[name].model_extra["max_model_len"] > 256
    assert ai.models.retrieve("stream/gate").id == "stream/gate"
    with pytest.raises(openai.NotFoundError) as refused:
        ai.models.retrieve("stream/none")
    assert refused.value.param == "model"


def test_a_text_gets_an_answer_with_its_cost(ai):
    answer = ai.chat.completions.create(
        model="demo", messages=[{"role": "user", "content": "Hi"}], max_tokens=5
    )
    assert answer.object == "chat.completion"
    assert answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= 5
    assert answer.usage.prompt_tokens_details.cached_tokens >= 0
    assert (tiles(answer), answer.usage.model_extra["vision_tokens"]) == (0, 0)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_a_sent_picture_is_seen_and_then_forgotten(ai, chat_service, form):
    answer = ask(ai, "What is this?", shown(data_url(form=form)))
    assert answer.usage.model_extra["vision_tokens"] > 0
    # and nothing of it is kept in Redis
    query_id = answer.id.removeprefix("chatcmpl-")
    redis = chat_service.client.connections.main
    assert chat_service.client.query(query_id).result.frames == 1
    assert not redis.exists(redis_keys.frame_index(query_id), redis_keys.deltas(query_id))
    assert not redis.keys(redis_keys.jpeg(query_id, "*"))


def test_several_pictures_stand_between_the_texts(ai):
    one = ask(ai, "One:", shown(data_url(1)), "What?")
    two = ask(ai, "One:", shown(data_url(1)), "Two:", shown(data_url(2)), "What?")
    assert tiles(two) > tiles(one) / 2
    assert two.usage.prompt_tokens > one.usage.prompt_tokens


def test_detail_decides_the_tiles(ai):
    large = data_url(3, width=1280, height=720)
    low, high = (ask(ai, shown(large, detail=detail), "What?") for detail in ("low", "high"))
    auto = ask(ai, shown(large, detail="auto"), "What?")
    assert tiles(low) == 1
    assert tiles(high) > 1
    assert 1 <= tiles(auto) <= tiles(high)


def test_a_conversation_has_pictures_in_any_turn_of_the_user(openai, ai):
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        user(shown(data_url(1)), "What is this?"),
        {"role": "assistant", "content": "A picture."},
        {"role": "user", "content": "And now"},
        user("this?", shown(data_url(2))),
    ]
    answer = ai.chat.completions.create(model="demo", messages=messages, max_tokens=8)
    shorter = ai.chat.completions.create(model="demo", messages=messages[:2], max_tokens=8)
    assert answer.usage.model_extra["vision_tokens"] > 0
    assert answer.usage.prompt_tokens > shorter.usage.prompt_tokens
    messages[2]["content"] = [shown(data_url(1))]
    with pytest.raises(openai.BadRequestError) as refused:
        ai.chat.completions.create(model="demo", messages=messages)
    assert refused.value.param == "messages.2.content.0"


def test_a_camera_is_a_model(openai, ai, chat_service):
    answer = ai.chat.completions.create(
        model="stream/gate", messages=[{"role": "user", "content": "What is there?"}], max_tokens=8
    )
    assert answer.model == "stream/gate"
    assert answer.usage.model_extra["vision_tokens"] > 0
    query = chat_service.client.query(answer.id.removeprefix("chatcmpl-"))
    assert query.stream_name == "gate"
    assert (query.result.kind, query.result.frames) == ("answer", 1)
    with pytest.raises(openai.NotFoundError) as refused:
        ai.chat.completions.create(
            model="stream/none", messages=[{"role": "user", "content": "What is there?"}]
        )
    assert refused.value.param == "model"
    assert refused.value.code == "UNKNOWN_STREAM"


@pytest.mark.parametrize(
    ("part", "frames"),
    [
        (shown("stream://gate"), 1),
        (shown("stream://gate?last=1h"), 5),
        (shown("stream://gate?last=1h&max_frames=2"), 2),
        (shown("stream://gate?since=-1h&until=now"), 5),
        ({"type": "video_url", "video_url": {"url": "stream://gate?last=1h"}}, 5),
        ({"type": "stream", "stream": {"stream_id": "gate"}}, 1),
        ({"type": "stream", "stream": {"stream_id": "gate", "last": 3600}}, 5),
        ({"type": "stream", "stream": {"stream_id": "gate", "since": "-1h"}}, 5),
    ],
)
def test_a_part_shows_a_camera(ai, chat_service, part, frames):
    answer = ask(ai, "What happened?", part)
    result = chat_service.client.query(answer.id.removeprefix("chatcmpl-")).result
    assert result.error is None
    assert result.frames == frames
    assert result.stream_name == "gate"


def test_two_cameras_are_compared(ai, chat_service):
    answer = ask(ai, shown("stream://gate"), shown("stream://yard"), "Which is darker?")
    result = chat_service.client.query(answer.id.removeprefix("chatcmpl-")).result
    assert (result.frames, result.stream_name) == (2, None)


def test_a_video_is_shown_in_frames(openai, ai, chat_service, tmp_path):
    # given a video of 12 frames, sent and uploaded
    path = tmp_path / "clip.mp4"
    write_video(path, seconds=3, fps=4)
    packed = base64.b64encode(path.read_bytes()).decode()
    with path.open("rb") as file:
        upload = httpx.post(f"{chat_service.url}/files", files={"file": file}, timeout=60)
    sent = {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{packed}"}}
    stored = {"type": "video_url", "video_url": {"url": upload.json()["id"]}}
    # when
    answers = [ask(ai, part, "What happens?") for part in (sent, stored)]
    # then
    for answer in answers:
        result = chat_service.client.query(answer.id.removeprefix("chatcmpl-")).result
        assert 8 <= result.frames <= 12
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content
    with pytest.raises(openai.BadRequestError) as refused:
        ask(ai, {"type": "video_url", "video_url": data_url()}, "What?")
    assert refused.value.code == "INVALID_REQUEST"


class _Site(BaseHTTPRequestHandler):
    """A web server with one picture, one page and one redirect to this machine."""

    def do_GET(self):
        if self.path == "/away":
            self.send_response(302)
            self.send_header(
                "Location", f"http://127.0.0.1:{self.connection.getsockname()[1]}/a.jpg"
            )
            self.end_headers()
            return
        body = b"<html>no</html>" if self.path == "/page" else base64.b64decode(PICTURE)
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


PICTURE = data_url(5).partition(",")[2]


def test_a_named_picture_is_fetched_from_where_the_rules_allow(openai, ai):
    # given a web server that the setting allowed_hosts names, by a name of this machine
    with ThreadingHTTPServer(("127.0.0.1", 0), _Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        base = f"http://localhost:{site.server_port}"
        named = ask(ai, shown(f"{base}/a.jpg"), "What?")
        # then it is seen as if it had been sent
        sent = ask(ai, shown(f"data:image/jpeg;base64,{PICTURE}"), "What?")
        assert named.choices[0].message.content == sent.choices[0].message.content
        # and neither a page is, nor what the rules forbid
        for path, code in (("page", "INVALID_REQUEST"), ("away", "STREAM_URL_FORBIDDEN")):
            with pytest.raises(openai.APIStatusError) as refused:
                ask(ai, shown(f"{base}/{path}"), "What?")
            assert refused.value.code == code
        site.shutdown()


def test_an_idempotent_request_is_answered_once(ai, chat_service):
    before = len(chat_service.client.queries(1000))
    headers = {"Idempotency-Key": "chat-1"}
    first, again = (
        ai.chat.completions.with_raw_response.create(
            model="demo", messages=[user("Hi")], max_tokens=4, extra_headers=headers
        )
        for _ in range(2)
    )
    assert again.headers["idempotent-replayed"] == "true"
    assert again.parse().id == first.parse().id
    assert len(chat_service.client.queries(1000)) == before + 1


# What programs send, byte by byte, but for their words and pictures.
OLDER_FRIGATE = (  # 0.15: the prompt is a bare text among parts
    '{"model":"demo","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"PICTURE",'
    '"detail":"low"}},"Describe the person."]}]}'
)
FRIGATE = (  # 0.16: an object's pictures, then the prompt
    '{"model":"demo","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"PICTURE",'
    '"detail":"low"}},{"type":"image_url","image_url":{"url":"PICTURE","detail":"low"}},'
    '{"type":"text","text":"Décris la personne."}]}]}'
)
FRIGATE_REVIEW = (  # 0.17: the prompt, pictures with captions, and pydantic's schema of an answer
    '{"model":"demo","messages":[{"role":"user","content":[{"type":"text","text":"Review it."},'
    '{"type":"text","text":"Frame 1"},{"type":"image_url","image_url":{"url":"PICTURE",'
    '"detail":"low"}}]}],"response_format":{"type":"json_schema","json_schema":'
    '{"name":"review_metadata","strict":true,"schema":{"properties":{"title":{"description":'
    '"Under 10 words.","maxLength":80,"title":"Title","type":"string"},"confidence":{"description":'
    '"How sure it is.","maximum":1.0,"minimum":0.0,"title":"Confidence","type":"number"},'
    '"potential_threat_level":{"description":"Threat level.","maximum":2,"minimum":0,"title":'
    '"Potential Threat Level","type":"integer"},"other_concerns":{"anyOf":[{"items":{"type":'
    '"string"},"type":"array"},{"type":"null"}],"default":null,"description":"Concerns.","title":'
    '"Other Concerns"}},"required":["title","confidence","potential_threat_level"],"title":'
    '"ReviewMetadata","type":"object","additionalProperties":false}}}}'
)
FRIGATE_CHAT = (  # 0.17: its chat, which offers tools and is streamed
    '{"model":"demo","messages":[{"role":"system","content":"Look."},{"role":"user","content":'
    '"Who was at the door?"}],"stream":true,"stream_options":{"include_usage":true},'
    '"tool_choice":"auto","tools":[{"type":"function","function":{"name":"search_objects",'
    '"description":"Search for objects.","parameters":{"type":"object","properties":{"camera":'
    '{"type":"string"}}}}}]}'
)
LLM_VISION_KEY = (  # how it tries a key
    '{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": [{"type": "text", '
    '"text": "Hi"}]}]}'
)
LLM_VISION = (  # 1.5: a system prompt, what it remembers, and a picture with its name
    '{"model": "gpt-4o-mini", "messages": [{"role": "system", "content": "Describe the images."}, '
    '{"role": "user", "content": [{"type": "text", "text": "These serve as reference."}, {"type": '
    '"text", "text": "Dog:"}, {"type": "image_url", "image_url": {"url": "PICTURE"}}]}, {"role": '
    '"user", "content": [{"type": "text", "text": "Image 1:"}, {"type": "image_url", "image_url": '
    '{"url": "PICTURE"}}, {"type": "text", "text": "Wer ist vor der T\\u00fcr?"}]}], '
    '"max_completion_tokens": 100, "temperature": 0.5, "top_p": 0.9}'
)
LLM_VISION_JSON = (  # with a structure
    '{"model": "gpt-4o-mini", "messages": [{"role": "system", "content": "Describe the images."}, '
    '{"role": "user", "content": [{"type": "text", "text": "Image 1:"}, {"type": "image_url", '
    '"image_url": {"url": "PICTURE"}}, {"type": "text", "text": "Is the door open?"}]}], '
    '"max_completion_tokens": 1000, "temperature": 0.5, "top_p": 0.9, "response_format": {"type": '
    '"json_schema", "json_schema": {"name": "response", "schema": {"type": "object", "properties": '
    '{"open": {"type": "boolean"}, "why": {"type": "string"}}, "required": ["open", "why"], '
    '"additionalProperties": false}, "strict": true}}}'
)
LLM_VISION_TITLE = (  # a title for what was seen: two messages of the user in a row
    '{"model": "gpt-4o-mini", "messages": [{"role": "user", "content": [{"type": "text", "text": '
    '"Write a title."}]}, {"role": "user", "content": [{"type": "text", "text": "A person is at '
    'the door."}]}], "max_completion_tokens": 4096, "temperature": 0.5, "top_p": 0.9}'
)
HOMESEC = {
    "model": "demo",
    "messages": [
        {"role": "system", "content": "You are a security analyst."},
        user("Frame at 0.0 s", shown(data_url(1)), "Frame at 1.0 s", shown(data_url(2)), "Report."),
    ],
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "report",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "risk": {"type": "string", "enum": ["low", "medium", "high"]},
                    "people": {"type": "boolean"},
                },
                "required": ["risk", "people"],
                "additionalProperties": False,
            },
        },
    },
    "max_completion_tokens": 10_000,
}


def as_sent(body):
    """Return the bytes of a body, with a picture in it."""
    return body.replace("PICTURE", data_url()).encode()


def post(chat_service, body):
    """Send the bytes of a body as programs do."""
    headers = {"Content-Type": "application/json", "Authorization": "Bearer unused"}
    return httpx.post(
        f"{chat_service.url}/chat/completions", content=as_sent(body), headers=headers, timeout=120
    )


@pytest.mark.parametrize(
    "body",
    [OLDER_FRIGATE, FRIGATE, LLM_VISION_KEY, LLM_VISION, LLM_VISION_TITLE],
    ids=["Frigate 0.15", "Frigate", "LLM Vision's key", "LLM Vision", "LLM Vision's title"],
)
def test_a_body_of_a_program_is_answered(chat_service, body):
    response = post(chat_service, body)
    # its programs read nothing else
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["message"]["content"].strip()


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (FRIGATE_REVIEW, {"title", "confidence", "potential_threat_level"}),
        (LLM_VISION_JSON, {"open", "why"}),
    ],
    ids=["Frigate", "LLM Vision"],
)
def test_the_schema_of_a_program_is_followed(chat_service, body, fields):
    response = post(chat_service, body)
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert fields <= set(json.loads(choice["message"]["content"]))


def test_the_chat_of_frigate_is_streamed_and_calls_no_tool(chat_service):
    response = post(chat_service, FRIGATE_CHAT)
    assert response.status_code == 200, response.text
    lines = [line for line in response.text.splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
    assert "".join(delta.get("content") or "" for delta in deltas).strip()
    assert not any(delta.get("tool_calls") for delta in deltas)
    assert chunks[-1]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("body", [FRIGATE, FRIGATE_REVIEW], ids=["an object", "a review"])
def test_openais_package_sends_the_bodies_of_frigate(ai, chat_service, body):
    # given the arguments that Frigate hands to OpenAI's package
    wanted = json.loads(as_sent(body))
    arguments = {
        key: wanted[key] for key in ("model", "messages", "response_format") if key in wanted
    }
    # when
    answer = ai.chat.completions.with_raw_response.create(**arguments, timeout=120)
    # then what goes over the wire is the body, to the byte
    assert answer.http_request.content == as_sent(body)


def test_a_body_that_homesec_was_seen_to_send(chat_service):
    body = HOMESEC
    response = httpx.post(f"{chat_service.url}/chat/completions", json=body, timeout=120)
    assert response.status_code == 200, response.text
    answer = response.json()
    (choice,) = answer["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["finish_reason"] == "stop"
    assert set(json.loads(choice["message"]["content"])) == {"risk", "people"}
    # a name that no model has stands for the model that is there
    models = httpx.get(f"{chat_service.url}/models", timeout=60).json()["data"]
    assert answer["model"] in {model["id"] for model in models}


def test_max_tokens_is_reduced_to_what_is_possible(ai):
    for name in ("max_tokens", "max_completion_tokens"):
        answer = ask(ai, "Hi", **{"max_tokens": None, name: 10_000, "stop": ["."]})
        assert answer.choices[0].finish_reason in ("stop", "length")
    short = ask(ai, "Hi", max_tokens=None, max_completion_tokens=2)
    assert short.usage.completion_tokens <= 2


def test_a_streamed_answer_is_that_of_the_same_request_at_once(ai):
    content = ("What is this?", shown(data_url()))
    whole = ask(ai, *content, max_tokens=20)
    chunks = list(
        ask(ai, *content, max_tokens=20, stream=True, stream_options={"include_usage": True})
    )
    first, *middle, last, costs = chunks
    assert first.choices[0].delta.role == "assistant"
    assert first.choices[0].delta.content == ""
    text = "".join(chunk.choices[0].delta.content or "" for chunk in middle)
    assert text == whole.choices[0].message.content
    assert {chunk.id for chunk in chunks} == {first.id}
    assert [chunk.choices[0].finish_reason for chunk in middle] == [None] * len(middle)
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert costs.choices == []
    assert costs.usage.total_tokens == whole.usage.total_tokens
    assert costs.usage.prompt_tokens_details.cached_tokens > 0
    # without include_usage no chunk has it
    plain = list(ask(ai, "Hi", stream=True))
    assert all(chunk.usage is None and chunk.choices for chunk in plain)


def test_the_stream_has_the_form_of_server_sent_events(chat_service):
    body = {
        "model": "demo",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "max_tokens": 4,
    }
    response = httpx.post(f"{chat_service.url}/chat/completions", json=body, timeout=120)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.strip().split("\n\n")
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    assert all(chunk["object"] == "chat.completion.chunk" for chunk in chunks)
    assert all("usage" not in chunk for chunk in chunks)


def test_n_answers_share_the_prompt(ai):
    options = {"n": 3, "seed": 7, "temperature": 1.5, "max_tokens": 12}
    answer = ask(ai, shown(data_url()), "What is this?", **options)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert len(set(texts)) > 1
    # the seed makes them repeatable, streamed too
    pieces = ["", "", ""]
    for chunk in ask(ai, shown(data_url()), "What is this?", stream=True, **options):
        for choice in chunk.choices:
            pieces[choice.index] += choice.delta.content or ""
    assert pieces == texts
    assert answer.usage.completion_tokens > max(map(len, pieces)) / 100
    single = ask(ai, shown(data_url()), "What is this?", **options | {"n": 1})
    assert single.choices[0].message.content == texts[0]
    assert answer.usage.prompt_tokens == single.usage.prompt_tokens


def test_logprobs_are_those_of_the_tokens(openai, ai):
    options = {"logprobs": True, "top_logprobs": 3, "max_tokens": 6}
    answer = ask(ai, "What is this?", shown(data_url()), **options)
    (choice,) = answer.choices
    tokens = choice.logprobs.content
    assert b"".join(bytes(token.bytes) for token in tokens).decode().strip() == (
        choice.message.content
    )
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs)  # it is greedy
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0001
    streamed = [
        token
        for chunk in ask(ai, "What is this?", shown(data_url()), stream=True, **options)
        for each in chunk.choices
        if each.logprobs
        for token in each.logprobs.content
    ]
    assert [token.token for token in streamed] == [token.token for token in tokens]
    assert ask(ai, "Hi").choices[0].logprobs is None
    with pytest.raises(openai.BadRequestError) as refused:
        ask(ai, "Hi", top_logprobs=2)
    assert refused.value.param == "top_logprobs"


SCHEMA = {
    "type": "object",
    "properties": {
        "summary": {"type": "string"},
        "colours": {"type": "array", "items": {"type": "string"}},
        "danger": {"type": "string", "enum": ["low", "high"]},
        "count": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    },
    "required": ["summary", "colours", "danger", "count"],
}


def test_json_has_its_schema(ai):
    small = {"type": "object", "properties": {"danger": {"enum": ["low", "high"]}}}
    named = {"name": "report", "strict": True, "schema": small | {"required": ["danger"]}}
    form = {"type": "json_schema", "json_schema": named}
    answer = ask(ai, "Describe.", shown(data_url()), response_format=form, max_tokens=100)
    assert answer.choices[0].finish_reason == "stop"
    assert json.loads(answer.choices[0].message.content)["danger"] in ("low", "high")
    # an answer that is cut says so, and is no error
    open_form = {"type": "json_schema", "json_schema": {"name": "report", "schema": SCHEMA}}
    cut = ask(ai, "Describe.", response_format=open_form, max_tokens=5)
    assert cut.choices[0].finish_reason == "length"
    assert cut.choices[0].message.content.startswith("{")
    chosen = ask(ai, "Dark?", response_format={"type": "choice", "choices": ["yes", "no"]})
    assert chosen.choices[0].message.content in ("yes", "no")
    free = ask(ai, "Describe.", response_format={"type": "json_object"}, max_tokens=40)
    assert free.choices[0].message.content.startswith("{")


def test_a_schema_that_cannot_be_followed_is_refused(openai, ai):
    schema = {"type": "string", "not": {"const": "a"}}
    form = {"type": "json_schema", "json_schema": {"name": "bad", "schema": schema}}
    with pytest.raises(openai.BadRequestError) as refused:
        ask(ai, "Describe.", response_format=form)
    assert (refused.value.type, refused.value.code, refused.value.param) == (
        "invalid_request_error",
        "INVALID_REQUEST",
        "response_format",
    )


def test_stop_ends_the_answer(ai):
    form = {"type": "choice", "choices": ["one two"]}
    assert ask(ai, "Say it.", response_format=form).choices[0].message.content == "one two"
    whole = ask(ai, "What is this?", shown(data_url()), max_tokens=20).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3].strip()
    for given in (stop, [stop, "never"]):
        cut = ask(ai, "What is this?", shown(data_url()), max_tokens=20, stop=given)
        assert cut.choices[0].message.content == whole[: whole.index(stop)].strip()
        assert cut.choices[0].finish_reason == "stop"


def test_unknown_fields_are_ignored_and_tools_are_not_called(openai, ai):
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    for ignored in ("auto", "none"):
        answer = ask(ai, "Hi", tools=tools, tool_choice=ignored, user="me", presence_penalty=0.5)
        assert answer.choices[0].message.tool_calls is None
    ask(ai, "Hi", extra_body={"keep_alive": "5m", "think": False, "metadata": {"a": 1}})
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(ai, "Hi", tools=tools, tool_choice=choice)
        assert refused.value.param == "tool_choice"


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([shown("data:image/png;base64,AAAA")], "messages.0.content.0"),
        ([shown("data:image/png;base64,****")], "messages.0.content.0"),
        ([{"type": "text", "text": "a"}, shown("ftp://host/a.png")], "messages.0.content.1"),
        ([shown("http://127.0.0.1:1/a.png")], "messages.0.content.0"),
        ([shown("file:///etc/passwd")], "messages.0.content.0"),
        ([shown("stream://gate?lst=3s")], "messages.0.content.0"),
        ([shown("stream://gate?last=3s&since=-5m")], "messages.0.content.0"),
        ([{"type": "video_url", "video_url": "file_0123456789abcdef"}], "messages.0.content.0"),
        ([{"type": "input_audio", "input_audio": {}}], "messages.0.content.0"),
        ("   ", "messages"),
    ],
)
def test_a_bad_part_is_refused_by_its_name(openai, ai, content, param):
    with pytest.raises(openai.APIStatusError) as refused:
        ai.chat.completions.create(model="demo", messages=[{"role": "user", "content": content}])
    assert refused.value.status_code in (400, 403, 404)
    assert refused.value.param is not None
    assert refused.value.param.startswith(param)
    assert refused.value.response.json()["error"]["request_id"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": []},
        {"temperature": 3},
        {"n": 0},
        {"max_tokens": 0},
        {"top_logprobs": 21, "logprobs": True},
        {"response_format": {"type": "xml"}},
    ],
)
def test_an_invalid_request_is_400_with_openais_envelope(openai, ai, wrong):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(ai, "Hi", **wrong)
    assert refused.value.type == "invalid_request_error"
    assert str(refused.value.param).split(".")[0] == next(iter(wrong))
    assert refused.value.response.headers["x-should-retry"] == "false"


def test_a_picture_that_the_context_cannot_hold_is_400(openai, ai):
    with pytest.raises(openai.BadRequestError) as refused:
        ask(ai, "word " * 20_000)
    assert refused.value.code == "PROMPT_TOO_LONG"


def test_a_caller_that_goes_away_cancels_its_answer(chat_service):
    # given an answer that takes long
    body = {
        "model": "demo",
        "messages": [user(shown(data_url()), "Tell a long story.")],
        "max_tokens": 4096,
        "temperature": 2.0,
        "n": 4,
        "stream": True,
    }
    with httpx.stream(
        "POST", f"{chat_service.url}/chat/completions", json=body, timeout=120
    ) as response:
        line = next(line for line in response.iter_lines() if line)
        query_id = json.loads(line.removeprefix("data: "))["id"].removeprefix("chatcmpl-")
    # when its caller has gone, then no job of it is left, whether or not it was answered before
    deadline = time.monotonic() + 120
    while chat_service.client.query(query_id).status not in (
        QueryStatus.CANCELLED,
        QueryStatus.DONE,
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    redis = chat_service.client.connections.main
    while redis.exists(redis_keys.frame_index(query_id)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_example_of_the_documentation_runs(chat_service):
    # given the code of docs/openai.md
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert "http://127.0.0.1:8080/v1" in code
    written = io.StringIO()
    # when
    printed = functools.partial(print, file=written)
    code = code.replace("http://127.0.0.1:8080/v1", chat_service.url)
    exec(code.replace("last=10s", "last=1h"), {"print": printed})  # the frames are older
    # then
    models, now, past, report = written.getvalue().strip().splitlines()
    assert "stream/gate" in models
    assert now
    assert past
    assert re.fullmatch(r'\{"people": (true|false), "mood": "(calm|busy)"\} \d+', report)


@pytest.mark.parametrize("name", EXAMPLES["create_chat_completion"])
def test_each_example_of_the_reference_is_answered(chat_service, name):
    body = json.dumps(EXAMPLES["create_chat_completion"][name])
    body = body.replace("last=10s", "last=1h")  # the frames are older
    answer = httpx.post(f"{chat_service.url}/chat/completions", json=json.loads(body), timeout=120)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]


def test_an_overload_is_429(openai, ai, chat_service, monkeypatch):
    monkeypatch.setattr(chat_service.client.settings, "max_query_bytes", 1)
    redis = chat_service.client.connections.main
    # of no query, which would be looked for, and not counted once it is not found
    redis.hset(redis_keys.OPEN_QUERIES, "total", 10)
    try:
        with pytest.raises(openai.RateLimitError) as refused:
            ask(ai, shown(data_url()), "What?")
    finally:
        redis.delete(redis_keys.OPEN_QUERIES)
    assert refused.value.code == "TOO_MANY_QUERIES"
    assert int(refused.value.response.headers["retry-after"]) > 0
    assert not redis.keys(redis_keys.jpeg("qry_*", "*"))
