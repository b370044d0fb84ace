"""What servers with OpenAI's API do differently, each played by a real HTTP server.

The forms of streams, errors and lists are those of the servers' own sources and documentation:
vLLM, SGLang, Ollama, llama.cpp.
"""

import asyncio
import threading
import time

import pytest
from fastapi.responses import JSONResponse, StreamingResponse
from structlog.testing import capture_logs

from streamer.doctor.examination import examine
from streamer.doctor.model import model
from streamer.domain.kinds import RequestKind
from streamer.errors import ErrorCode
from streamer.queues.deltas import Deltas
from streamer.response_format import ChoiceFormat, JsonFormat
from tests.support.clips import request, run
from tests.support.scripted_model import MODEL, piece, refused, said, streamed
from workers import context
from workers.context import BrokeDown, GiveBack
from workers.gpu.clip_job import answer_clip

USAGE = {"prompt_tokens": 900, "completion_tokens": 3, "total_tokens": 903}
LIMIT = 120.0


def likely(*texts):
    """The log-probabilities of tokens, as all four servers write them."""
    top = [{"token": "The", "logprob": -1.5, "bytes": [84, 104, 101]}]
    tokens = [
        {"token": t, "logprob": -0.25, "bytes": list(t.encode()), "top_logprobs": top}
        for t in texts
    ]
    return {"content": tokens}


def vllm(wait):
    """The role comes first; `usage` is null until the last chunk; text ends with the reason."""
    yield piece("") | {"usage": None}
    yield piece("A ", logprobs=likely("A ")) | {"usage": None}
    wait()
    yield piece("street.", "stop", logprobs=likely("street", "."), stop_reason=None)
    yield {"object": "chat.completion.chunk", "choices": [], "usage": USAGE}
    yield "data: [DONE]\n\n"


def sglang(wait):
    """Texts may be null; the reason comes in a chunk of its own."""
    role = {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    yield {"object": "chat.completion.chunk", "choices": [role]}
    yield piece("A ", logprobs=likely("A "))
    wait()
    yield piece("street.", logprobs=likely("street", "."), matched_stop=None)
    end = {"role": None, "content": None, "reasoning_content": None, "tool_calls": None}
    yield piece(None, "stop", delta=end, matched_stop=151645)
    yield {"object": "chat.completion.chunk", "choices": [], "usage": USAGE}
    yield "data: [DONE]\n\n"


def ollama(wait):
    """The role is in each chunk; the usage comes with the last chunk once more."""
    for number, text in enumerate(("A ", "street.")):
        delta = {"role": "assistant", "content": text}
        tokens = ("A ",) if number == 0 else ("street", ".")
        yield piece(delta=delta, logprobs=likely(*tokens))
        wait()
    yield piece("", "stop")
    yield piece("", "stop") | {"choices": [], "usage": USAGE}
    yield "data: [DONE]\n\n"


def llama_cpp(wait):
    """The role has a null text; comments keep the connection alive; timings stand beside."""
    yield piece(delta={"role": "assistant", "content": None})
    yield ": ping\n\n"
    yield piece("A ", logprobs=likely("A "))
    wait()
    yield piece("street.", logprobs=likely("street", "."))
    yield piece(None, "stop") | {"timings": {"predicted_n": 3}}
    yield {"choices": [], "usage": USAGE, "timings": {"predicted_n": 3}}
    yield "data: [DONE]\n\n"


def pieces_of(own, asked):
    return [delta for _, delta in Deltas(own.connections.main).read(asked.id)]


@pytest.mark.parametrize("dialect", [vllm, sglang, ollama, llama_cpp])
def test_a_streamed_answer_is_published_while_it_comes(own, server, eventually, dialect) -> None:
    # given a server that pauses after the first word until it has been read
    read = threading.Event()
    server.script = lambda _: streamed(dialect(lambda: read.wait(LIMIT)))
    asked = request(own, RequestKind.QUERY, logprobs=1)
    own.jobs.submit(asked)

    def answer() -> None:
        context.enter_slot(threading.Event())
        answer_clip(asked.model_dump(mode="json"))

    working = threading.Thread(target=answer)
    working.start()
    eventually(lambda: pieces_of(own, asked))
    first = pieces_of(own, asked)
    assert own.results.get(asked.id) is None
    read.set()
    working.join()

    # then the first word was there before the rest, and the pieces are the answer
    assert [delta.text for delta in first] == ["A"]
    whole, result = pieces_of(own, asked), own.results.get(asked.id)
    assert "".join(delta.text for delta in whole) == result.text == "A street."
    assert [delta.at for delta in whole] == [0, 1]
    tokens = [token for delta in whole for token in delta.tokens]
    assert b"".join(bytes(token.bytes) for token in tokens) == b"A street."
    assert bytes(tokens[0].top[0].bytes) == b"The"
    assert (result.finish_reason, result.prompt_tokens, result.completion_tokens) == (
        "stop",
        900,
        3,
    )
    (body,) = server.asked
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


def test_thoughts_and_white_space_around_an_answer_are_not_published(own, server) -> None:
    texts = ["\n<th", "ink>", "A car?", "</think>", "\n\n", "A street", " \n", "."]
    server.script = lambda _: streamed([*map(piece, texts), piece("\n", "stop")])
    asked = request(own, RequestKind.QUERY)
    result = run(own, asked)
    assert result.text == "A street \n."
    assert "".join(delta.text for delta in pieces_of(own, asked)) == result.text


def test_watches_and_forms_are_asked_in_one_piece(own, server) -> None:
    run(own, request(own))
    server.script = lambda _: said('{"answer": "yes"}')
    form = ChoiceFormat(choices=["yes", "no"])
    asked = request(own, RequestKind.QUERY, response_format=form, logprobs=0)
    run(own, asked)
    assert not any("stream" in body for body in server.asked)
    assert [delta.text for delta in pieces_of(own, asked)] == ["yes"]


def test_a_server_that_does_not_stream_answers_in_one_piece(own, server) -> None:
    def script(body):
        for field in ("stream_options", "stream"):
            if field in body:
                return refused(400, f"Unrecognized request argument: '{field}'")
        return said("A street.")

    server.script = script
    first, second = (request(own, RequestKind.QUERY) for _ in range(2))
    assert run(own, first).text == run(own, second).text == "A street."
    assert [delta.text for delta in pieces_of(own, second)] == ["A street."]
    # the fields that it does not take are left out from then on
    assert len(server.asked) == 4
    # and so is a server that ignores that the answer was to be streamed
    server.script = lambda _: said("A road.")
    assert run(own, request(own, RequestKind.QUERY)).text == "A road."


def test_a_cancelled_question_closes_the_connection_to_the_server(own, server) -> None:
    # given an answer without an end
    started, closed = threading.Event(), threading.Event()

    async def endless():
        try:
            while True:
                yield 'data: {"choices": [{"index": 0, "delta": {"content": "on "}}]}\n\n'
                started.set()
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    server.script = lambda _: StreamingResponse(endless(), media_type="text/event-stream")
    asked = request(own, RequestKind.QUERY)
    outcome: list[str] = []
    stop = threading.Event()

    def answer() -> None:
        context.enter_slot(stop)
        try:
            answer_clip(asked.model_dump(mode="json"))
        except GiveBack:
            outcome.append("given back")

    working = threading.Thread(target=answer)
    working.start()
    assert started.wait(LIMIT)
    stop.set()  # what a cancellation sets
    working.join()
    # then the server stops generating, too
    assert outcome == ["given back"]
    assert closed.wait(LIMIT)


@pytest.mark.parametrize(
    "end",
    [
        [],  # Ollama, whose model fails: the stream ends
        [{"error": {"message": "CUDA error", "type": "InternalServerError", "code": 500}}],  # vLLM
        # with the status of a bad request, and a word for which another would leave out a field
        [{"error": {"message": "a logprobs tensor is empty", "code": 400}}],
        ['error: {"code": 500, "message": "slot unavailable"}\n\n'],  # llama.cpp of 2024
        [piece("", "abort"), "data: [DONE]\n\n"],  # vLLM and SGLang, when they are stopped
        ["data: <html>\n\n"],  # a proxy
    ],
)
def test_an_answer_that_is_broken_off_is_asked_again_by_another_job(own, server, end) -> None:
    server.script = lambda _: streamed([piece("A str"), *end])
    with pytest.raises(BrokeDown):
        answer_clip(request(own, RequestKind.QUERY, logprobs=1).model_dump(mode="json"))
    assert len(server.asked) == 1


def test_a_whole_answer_that_was_aborted_is_not_taken_for_one(own, server) -> None:
    server.script = lambda _: said("A str", finish_reason="abort")
    with pytest.raises(BrokeDown):
        answer_clip(request(own).model_dump(mode="json"))


def test_an_error_instead_of_the_first_piece_is_that_of_the_request(own, server) -> None:
    # SGLang and vLLM refuse a long prompt in the stream, after the status 200
    text = "The input (9412 tokens) is longer than the model's context length (8192 tokens)."
    error = {"error": {"object": "error", "message": text, "type": "BadRequestError", "code": 400}}
    server.script = lambda _: streamed([error, "data: [DONE]\n\n"])
    assert run(own, request(own, RequestKind.QUERY)).error.code is ErrorCode.PROMPT_TOO_LONG


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            400,  # vLLM
            {"error": {"message": "The decoder prompt (length 9412) is longer than the maximum "
                       "model length of 8192. Make sure that `max_model_len` is no smaller.",
                       "type": "BadRequestError", "param": None, "code": 400}},
        ),
        (
            400,  # SGLang
            {"object": "error", "message": "Requested token count exceeds the model's maximum "
             "context length of 8192 tokens.", "type": "BadRequestError", "code": 400},
        ),
        (
            400,  # llama.cpp
            {"error": {"code": 400, "message": "request (9412 tokens) exceeds the available "
                       "context size (8192 tokens), try increasing it",
                       "type": "exceed_context_size_error",
                       "n_prompt_tokens": 9412, "n_ctx": 8192}},
        ),
        (
            400,  # vLLM, started without --limit-mm-per-prompt
            {"error": {"message": "At most 1 image(s) may be provided in one prompt. "
                       "(parameter=image)", "type": "BadRequestError", "code": 400}},
        ),
    ],
)  # fmt: skip
def test_each_server_s_words_for_a_long_prompt_are_understood(own, server, status, body) -> None:
    server.script = lambda _: JSONResponse(body, status)
    result = run(own, request(own))
    assert result.error.code is ErrorCode.PROMPT_TOO_LONG
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (500, "image input is not supported - hint: if this is unexpected, you may need to "
         "provide the mmproj"),  # llama.cpp
        (400, "acme/eye-7b is not a multimodal model"),  # vLLM
        (400, "At most 0 image(s) may be provided in one prompt."),  # vLLM
    ],
)  # fmt: skip
def test_a_model_without_eyes_is_said_and_not_asked_again(own, server, status, message) -> None:
    server.script = lambda _: refused(status, message)
    result = run(own, request(own))
    assert result.error.code is ErrorCode.MODEL_FAILED
    assert "load a vision language model" in result.error.message
    assert len(server.asked) == 1


def test_an_answer_that_leaves_no_room_for_the_prompt_is_asked_shorter(own, server) -> None:
    # vLLM refuses a prompt and an answer that are too long together
    def script(body):
        if body["max_tokens"] > 300:
            return refused(
                400,
                f"'max_tokens' or 'max_completion_tokens' is too large: {body['max_tokens']}. This "
                "model's maximum context length is 4096 tokens and your request has 3700 input "
                "tokens.",
            )
        return said("A street.")

    server.script = script
    assert run(own, request(own, max_tokens=1024)).text == "A street."
    assert [body["max_tokens"] for body in server.asked] == [1024, 512, 256]
    # and the server takes max_tokens as before
    assert run(own, request(own, max_tokens=100)).text == "A street."
    assert server.asked[-1]["max_tokens"] == 100


def test_a_schema_that_a_server_cannot_use_is_left_out_of_this_request_alone(own, server) -> None:
    def script(body):
        form = body.get("response_format")
        if form is not None and "pattern" in str(form):
            return refused(400, "Grammar error: Unimplemented keys: ['pattern']")
        return said('{"n": "1"}')

    server.script = script
    text = {"type": "string", "pattern": "^[0-9]$"}
    hard = {"type": "object", "properties": {"n": text}, "required": ["n"]}
    easy = {"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]}
    for schema in (hard, easy):
        result = run(own, request(own, response_format=JsonFormat(json_schema=schema)))
        assert result.data == {"json": {"n": "1"}}
    assert ["response_format" in body for body in server.asked] == [True, False, True]


def test_a_model_of_ollama_is_found_without_its_tag(remote, own, server) -> None:
    # given a model that is not there
    server.script = lambda _: refused(404, f'model "{MODEL}" not found, try pulling it first')
    server.models = ["another:latest"]
    with pytest.raises(GiveBack):
        answer_clip(request(own, RequestKind.QUERY).model_dump(mode="json"))
    look = {"model": lambda settings: model(settings, time.monotonic() + LIMIT)}
    assert examine(remote, examinations=look)[0].state == "warn"
    # when it has been pulled
    server.script = lambda _: said("A street.")
    server.models = ["another:latest", f"{MODEL}:latest"]
    # then it is known by the name that it was given
    assert examine(remote, examinations=look)[0].state == "ok"
    chat = own.backend._server
    with capture_logs() as logs:
        asyncio.run_coroutine_threadsafe(chat._look_at_models(), chat._loop).result(LIMIT)
    assert chat.trouble is None
    assert not [line for line in logs if line["event"] == "model_not_listed"]
    assert run(own, request(own)).text == "A street."
