"""Route of `/v1/chat/completions`, which programs written for OpenAI's API call."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from streamer.api.chat_schemas import ChatBody, logprobs_of, usage_of
from streamer.api.dependencies import ClientDependency, HubDependency
from streamer.api.errors import ErrorResponse, InvalidIs400
from streamer.api.live.chat_answers import AnswerStep, ChatAnswers
from streamer.api.middleware.idempotency import IdempotentId, IdempotentRoute
from streamer.api.routes.models import served_models
from streamer.clock import shared
from streamer.domain.conversation import ChatRequest
from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.questions.queries import NotYet
from streamer.queues.deltas import Delta, DeltaToken
from streamer.service import FRAME_POLL_INTERVAL, Service


class _ChatRoute(IdempotentRoute, InvalidIs400):
    """A route whose invalid requests are 400; a request that is not streamed may be repeated."""


router = APIRouter(prefix="/v1/chat", tags=["openai"], route_class=_ChatRoute)

_KEEP_ALIVE = 15.0
"""Seconds of silence after which a comment is sent."""

_PATIENCE = 10.0
"""Seconds to wait for the first piece of a streamed answer before the response begins: a failure
until then has a status of its own."""

_FINISH_REASONS = {"length": "length"}


@router.post("/completions", response_model=None)
async def create_chat_completion(
    body: ChatBody,
    request: Request,
    client: ClientDependency,
    hub: HubDependency,
    new_id: IdempotentId,
) -> Response:
    """Continue a conversation about pictures and cameras, as OpenAI's API does.

    Unknown fields are ignored. `stream://NAME` as the address of a picture or video, and
    `stream/NAME` as the model, show what an attached camera sees.
    """
    chat = await _prepare(client, body, f"qry_{new_id}" if new_id is not None else None)
    answers = await ChatAnswers(client, hub, request, chat, body.n or 1).__aenter__()
    shape = _Shape(answers.id, await run_in_threadpool(_model_name, client, body), body)
    if body.stream:
        return await _stream(answers, shape)
    try:
        return JSONResponse(await _complete(answers, shape))
    finally:
        await answers.close()


async def _prepare(client: Service, body: ChatBody, request_id: str | None) -> ChatRequest:
    """Choose and store the pictures; wait for a stream that is still being opened."""
    messages, sampling = body.conversation(), body.sampling
    if sampling["temperature"] > 0:  # so that a worker that takes over writes the same answer
        sampling["seed"] = secrets.randbelow(2**32) if body.seed is None else body.seed
    await run_in_threadpool(client.require_worker)
    named = not body.asks_camera and body.model in await run_in_threadpool(client.jobs.models)
    model = body.model if named else None
    deadline = time.monotonic() + client.first_frame_wait
    while True:
        try:
            return await run_in_threadpool(
                client.chats.prepare, messages, request_id=request_id, model=model, **sampling
            )
        except NotYet:
            if time.monotonic() >= deadline:
                raise
        except StreamerError as error:
            if body.camera is not None and error.code is ErrorCode.UNKNOWN_STREAM:
                error.param = "model"
            raise
        await asyncio.sleep(FRAME_POLL_INTERVAL)


def _model_name(client: Service, body: ChatBody) -> str:
    """Return what the answer calls its model."""
    if body.asks_camera:
        return body.model
    served = served_models(client)
    return body.model if body.model in served else next(iter(served))


class _Shape:
    """What all parts of one response have in common, and how they look."""

    def __init__(self, query_id: str, model: str, body: ChatBody) -> None:
        self.id, self.model, self.body = f"chatcmpl-{query_id}", model, body
        self.created = int(shared().time())

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def completion(
        self, results: dict[int, Result], tokens: dict[int, list[DeltaToken]]
    ) -> dict[str, Any]:
        """Return the body of a response at once."""
        ordered = [results[number] for number in sorted(results)]
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": result.text or "", "refusal": None},
                "logprobs": logprobs_of(tokens.get(number, [])) if self.body.logprobs else None,
                "finish_reason": finish_reason(result),
            }
            for number, result in enumerate(ordered)
        ]
        return self._head("chat.completion") | {"choices": choices, "usage": usage_of(ordered)}

    def chunk(self, *choices: dict[str, Any], usage: dict[str, Any] | None = None) -> str:
        """Return a server-sent event with a part of the answers."""
        record = self._head("chat.completion.chunk") | {"choices": list(choices)}
        if self.with_usage:
            record["usage"] = usage
        return f"data: {json.dumps(record, ensure_ascii=False)}\n\n"

    def opening(self) -> str:
        """Return the first chunk of each answer."""
        delta = {"role": "assistant", "content": ""}
        return "".join(self.chunk(self._choice(n, delta)) for n in range(self.body.n or 1))

    def step(self, number: int, step: AnswerStep) -> str:
        """Return the chunk of a piece of an answer, or that of its end."""
        if isinstance(step, Delta):
            return self.chunk(self._choice(number, {"content": step.text}, tokens=step.tokens))
        return self.chunk(self._choice(number, {}, reason=finish_reason(step)))

    def _choice(
        self,
        number: int,
        delta: dict[str, Any],
        *,
        tokens: list[DeltaToken] | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        shown = logprobs_of(tokens) if tokens and self.body.logprobs else None
        return {"index": number, "delta": delta, "logprobs": shown, "finish_reason": reason}

    @property
    def with_usage(self) -> bool:
        """Whether the last chunk tells what the answers cost."""
        options = self.body.stream_options
        return bool(self.body.stream and options is not None and options.include_usage)


def finish_reason(result: Result) -> str:
    """Return why an answer ended, in OpenAI's words."""
    return _FINISH_REASONS.get(result.finish_reason or "", "stop")


async def _complete(answers: ChatAnswers, shape: _Shape) -> dict[str, Any]:
    results: dict[int, Result] = {}
    tokens: dict[int, list[DeltaToken]] = {}
    async for step in answers.steps():
        match step:
            case (number, Result() as result):
                results[number] = result
            case (number, Delta() as delta):
                tokens.setdefault(number, []).extend(delta.tokens)
    return shape.completion(results, tokens)


async def _stream(answers: ChatAnswers, shape: _Shape) -> Response:
    """Return the response that sends the answers in pieces."""
    steps = answers.steps()
    began = time.monotonic()
    first: tuple[int, AnswerStep] | None = None
    try:
        async for step in steps:
            first = step
            if step is not None or time.monotonic() - began > _PATIENCE:
                break
    except BaseException:
        await answers.close()
        raise
    return StreamingResponse(
        _events(answers, shape, steps, first),
        media_type="text/event-stream",
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _events(
    answers: ChatAnswers,
    shape: _Shape,
    steps: AsyncIterator[tuple[int, AnswerStep] | None],
    first: tuple[int, AnswerStep] | None,
) -> AsyncIterator[str]:
    results: dict[int, Result] = {}
    sent = time.monotonic()
    try:
        yield shape.opening()
        if first is not None:
            _note(results, first)
            yield shape.step(*first)
        async for step in steps:
            if step is not None:
                _note(results, step)
                yield shape.step(*step)
                sent = time.monotonic()
            elif time.monotonic() - sent >= _KEEP_ALIVE:
                yield ": waiting\n\n"
                sent = time.monotonic()
        if shape.with_usage:
            yield shape.chunk(usage=usage_of([results[number] for number in sorted(results)]))
        yield "data: [DONE]\n\n"
    except StreamerError as error:
        failure = ErrorResponse(error.http_status, error.code, error.message, param=error.param)
        yield f"data: {bytes(failure.body).decode()}\n\n"
    finally:
        await answers.close()


def _note(results: dict[int, Result], step: tuple[int, AnswerStep]) -> None:
    number, found = step
    if isinstance(found, Result):
        results[number] = found
