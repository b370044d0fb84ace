"""Tell what becomes of a query: its place in the queue, pieces of its answer, its result."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import redis
from pydantic import Field
from starlette.concurrency import run_in_threadpool

from streamer.api.live.event_hub import EventHub
from streamer.domain.error_info import ErrorInfo
from streamer.domain.query import Query, QueryStatus
from streamer.domain.record import Record
from streamer.errors import StreamerError
from streamer.queues.deltas import Delta, Deltas
from streamer.service import Service

_LOOK_INTERVAL = 1.0
"""Seconds between two looks at the state of a query and its place in the queue."""


class Progress(Record):
    """How far a query is."""

    status: QueryStatus
    position: int | None = Field(description="queries that are answered before it, while it waits")
    windows: int | None = Field(default=None, description="windows in all, if it is about several")
    done: int | None = Field(default=None, description="windows that have an answer or none")
    unknown: int | None = Field(default=None, description="of these, windows that have none")


class AnswerPart(Record):
    """A piece of an answer."""

    at: int = Field(description="characters of the answer before it")
    text: str


@dataclass(frozen=True)
class Step:
    """What has become of a query: `progress`, `delta`, `result` or `error`; its data as JSON."""

    name: str
    data: str


async def follow(client: Service, hub: EventHub, query_id: str) -> AsyncIterator[Step]:
    """Yield what becomes of a query; the last step is its result, or why there is none."""
    deltas = Deltas(client.connections.main)
    shown: Progress | None = None
    characters, last = 0, "0-0"
    looked = float("-inf")
    await hub.start()
    with hub.awaiting(query_id, pieces=True) as awaited:
        ended = True
        while True:
            query = None
            try:
                if ended or time.monotonic() - looked >= _LOOK_INTERVAL:
                    looked = time.monotonic()
                    query = await run_in_threadpool(client.query, query_id)
                    progress = await run_in_threadpool(_progress, client, query)
                    if progress != shown and query.result is None:
                        shown = progress
                        yield Step("progress", progress.model_dump_json(exclude_unset=True))
                pieces = await run_in_threadpool(deltas.read, query_id, last)
            except redis.exceptions.RedisError as error:
                client.connections.outage.failed("events", error)
                await asyncio.sleep(_LOOK_INTERVAL)
                ended = True
                continue
            except StreamerError as error:
                reason = ErrorInfo(code=error.code, message=error.message)
                yield Step("error", reason.model_dump_json())
                return
            # A result comes after all pieces of it.
            for entry_id, delta in pieces:
                last = entry_id
                piece = _new_part(delta, characters)
                if piece.text:
                    characters = piece.at + len(piece.text)
                    yield Step("delta", piece.model_dump_json())
            if query is not None and query.result is not None:
                yield Step("result", query.model_dump_json())
                return
            ended = await awaited.wait(_LOOK_INTERVAL)


def _progress(client: Service, query: Query) -> Progress:
    waits = query.status is QueryStatus.QUEUED
    windows = {} if query.progress is None else query.progress.model_dump()
    return Progress(
        status=query.status, position=client.position(query.id) if waits else None, **windows
    )


def _new_part(delta: Delta, characters: int) -> AnswerPart:
    new = delta.beyond(characters)
    return AnswerPart(at=new.at, text=new.text)
