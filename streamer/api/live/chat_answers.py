"""Wait for the answers to a chat: their pieces as they are generated, then their results."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Self

import redis
from anyio import CancelScope
from fastapi import Request
from starlette.concurrency import run_in_threadpool

from streamer.api.live.event_hub import EventHub
from streamer.domain.conversation import ChatRequest
from streamer.domain.ids import new_id
from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.queues.deltas import Delta, Deltas
from streamer.service import Service

_LOOK_INTERVAL = 1.0
"""Seconds between two looks whether an answer is there, and whether its caller still is."""

AnswerStep = Delta | Result


class ChatAnswers:
    """The answers to one chat. Leaving it cancels those that are not there yet, and deletes the
    pictures of the chat.

    Args:
        client: the installation.
        hub: tells when there is more of an answer.
        request: what the caller sent; its connection is watched.
        chat: the conversation.
        count: number of answers to it.
    """

    def __init__(
        self, client: Service, hub: EventHub, request: Request, chat: ChatRequest, count: int
    ) -> None:
        self._client, self._hub, self._request, self._chat = client, hub, request, chat
        self._count = count
        self._deltas = Deltas(client.connections.main)
        self._asked: list[ChatRequest] = []
        self._open: set[int] = set()
        self._steps: asyncio.Queue[tuple[int, AnswerStep | Exception]] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._deadline = 0.0

    @property
    def id(self) -> str:
        """The id of the first answer's query."""
        return self._chat.id

    async def __aenter__(self) -> Self:
        """Submit the chat. Raises StreamerError(TOO_MANY_QUERIES)."""
        try:
            await self._hub.start()
            for chat in _copies(self._chat, self._count):
                await run_in_threadpool(self._client.chats.submit, chat)
                self._asked.append(chat)
                self._open.add(len(self._asked) - 1)
        except BaseException:
            await self.close()
            raise
        # It may wait in the queue as long as it may take.
        self._deadline = time.monotonic() + 2 * self._client.settings.job_timeout
        self._tasks = [
            asyncio.create_task(self._follow(number, chat.id))
            for number, chat in enumerate(self._asked)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what is not answered, and delete the pictures."""
        for task in self._tasks:
            task.cancel()
        with CancelScope(shield=True):  # also when the caller has gone
            await run_in_threadpool(self._clean_up)

    def _clean_up(self) -> None:
        with contextlib.suppress(StreamerError, redis.exceptions.RedisError):
            for number in sorted(self._open):
                self._client.cancel(self._asked[number].id)
        with contextlib.suppress(redis.exceptions.RedisError):
            self._client.chats.discard(self._chat)
            for chat in self._asked:
                self._deltas.discard(chat.id)

    async def steps(self) -> AsyncIterator[tuple[int, AnswerStep] | None]:
        """Yield the number of an answer and a new piece of it, or its result as its last one; None
        once in a while when nothing has come. It ends when all results are there.

        Raises StreamerError: what went wrong with an answer; CANCELLED when the caller has gone;
        TIMEOUT.
        """
        while self._open:
            try:
                number, step = await asyncio.wait_for(self._steps.get(), _LOOK_INTERVAL)
            except TimeoutError:
                if await self._request.is_disconnected():
                    raise StreamerError(ErrorCode.CANCELLED, "The caller has gone.") from None
                if time.monotonic() > self._deadline:
                    raise StreamerError(
                        ErrorCode.TIMEOUT,
                        "The answer has not come in time: try again, or add a model worker.",
                    ) from None
                yield None
                continue
            if isinstance(step, Exception):
                raise step
            if isinstance(step, Result):
                self._open.discard(number)
                if step.error is not None:
                    raise StreamerError(step.error.code, step.error.message)
            yield number, step

    async def _follow(self, number: int, query_id: str) -> None:
        """Queue the pieces of an answer, and then its result."""
        try:
            await self._read(number, query_id)
        except Exception as error:
            self._steps.put_nowait((number, error))

    async def _read(self, number: int, query_id: str) -> None:
        last, characters, tokens = "0-0", 0, 0
        ended, looked = True, float("-inf")
        with self._hub.awaiting(query_id, pieces=True) as awaited:
            while True:
                result = None
                try:
                    if ended or time.monotonic() - looked >= _LOOK_INTERVAL:
                        looked = time.monotonic()
                        query = await run_in_threadpool(self._client.query, query_id)
                        result = query.result
                    # After the result, so that a result comes after all pieces.
                    pieces = await run_in_threadpool(self._deltas.read, query_id, last)
                except redis.exceptions.RedisError as error:
                    self._client.connections.outage.failed("chats", error)
                    await asyncio.sleep(_LOOK_INTERVAL)
                    ended = True
                    continue
                for entry_id, delta in pieces:
                    last = entry_id
                    new = delta.beyond(characters, tokens)
                    if new.text or new.tokens:
                        characters = new.at + len(new.text)
                        tokens = new.first_token + len(new.tokens)
                        self._steps.put_nowait((number, new))
                if result is not None:
                    self._steps.put_nowait((number, result))
                    return
                ended = await awaited.wait(_LOOK_INTERVAL)


def _copies(chat: ChatRequest, count: int) -> Sequence[ChatRequest]:
    """Return a chat once for each answer; they differ by id and seed, and share the pictures."""
    copies = [chat]
    for number in range(1, count):
        seed = None if chat.seed is None else chat.seed + number
        changed = {"id": new_id("qry"), "seed": seed, "picture_bytes": 0}
        copies.append(chat.model_copy(update=changed))
    return copies
