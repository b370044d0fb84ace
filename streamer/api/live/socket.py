"""The WebSocket `/v1/ws`: events, pictures, video and answers over one connection, for a page."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Annotated, Any, Literal, cast

import redis
from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from pydantic import Field, TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from streamer.api.live import query_progress
from streamer.api.live.event_hub import EventHub
from streamer.api.live.pictures import Feed, Pictures
from streamer.api.live.videos import Videos
from streamer.domain.record import Record
from streamer.errors import ErrorCode, StreamerError
from streamer.events import EventFilter, is_position
from streamer.redis_client.errors import trouble_of
from streamer.service import Service

router = APIRouter()

CLOSE_SLOW = 4408
"""Code with which a socket is closed whose other end does not read, or does not acknowledge."""

SOCKET_PATIENCE = 30.0
"""Seconds that a message may take to be sent, or a picture to be acknowledged."""

MAX_NAMED = 100
"""Streams, types or queries that one message may name."""

MAX_VIDEOS = 4
"""Streams whose video one socket may watch at once."""

MAX_MESSAGE = 64 << 10
"""Characters of a message that a socket takes."""

_Names = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=MAX_NAMED)]


class Frames(Record):
    """Which pictures to send."""

    streams: _Names
    fps: float = Field(default=1.0, gt=0, le=10, description="maximum pictures per second")
    width: int = Field(default=640, ge=16, le=1920, description="maximum width, pixels")


class VideoWish(Record):
    """Whose video to send."""

    streams: Annotated[_Names, Field(max_length=MAX_VIDEOS)]


class Subscribe(Record):
    """What to send from now on, in place of what was sent before."""

    type: Literal["subscribe"]
    events: _Names | None = Field(
        default=None, description="types of events, such as incident.*; null: all; []: none"
    )
    streams: _Names | None = Field(
        default=None, description="ids or names of the streams whose events to send; null: all"
    )
    frames: Frames | None = None
    video: VideoWish | None = None
    queries: _Names = Field(default_factory=list, description="queries whose answers to follow")
    after: str | None = Field(default=None, description="id of the last event that is known")


class Acknowledge(Record):
    """A picture has been shown, so the next one of its stream may be sent."""

    type: Literal["ack"]
    stream_id: str
    frame: str


_messages: TypeAdapter[Subscribe | Acknowledge] = TypeAdapter(
    Annotated[Subscribe | Acknowledge, Field(discriminator="type")]
)


class _TooSlow(Exception):  # noqa: N818 - it ends the conversation
    """The other end does not read or acknowledge in time."""


@router.websocket("/v1/ws")
async def converse(socket: WebSocket) -> None:
    """Answer the messages of one socket until it is closed: see docs/events.md."""
    await socket.accept()
    await _Conversation(socket).run()


class _Conversation:
    """One socket, and what it has subscribed to."""

    def __init__(self, socket: WebSocket) -> None:
        state = socket.app.state
        self._socket = socket
        self._client = cast(Service, state.client)
        self._hub = cast(EventHub, state.events)
        self._pictures = cast(Pictures, state.pictures)
        self._videos = cast(Videos, state.videos)
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._films: dict[tuple[str, str], asyncio.Task[None]] = {}  # by id and name of the stream
        self._unacknowledged: dict[str, tuple[str, float]] = {}  # frame and time, by stream
        self._news = asyncio.Event()
        self._slow = asyncio.Event()

    async def run(self) -> None:
        reader = asyncio.create_task(self._read())
        slow = asyncio.create_task(self._slow.wait())
        try:
            await asyncio.wait((reader, slow), return_when=asyncio.FIRST_COMPLETED)
            if not reader.done():
                with contextlib.suppress(Exception):  # it may not even take this
                    await asyncio.wait_for(
                        self._socket.close(CLOSE_SLOW, "The socket is too slow."), 1.0
                    )
        finally:
            await self._stop()
            others = (reader, slow, *self._films.values())
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def _read(self) -> None:
        with contextlib.suppress(WebSocketDisconnect, RuntimeError, _TooSlow):
            while (message := await self._socket.receive())["type"] != "websocket.disconnect":
                try:
                    await self._handle(message.get("text") or "")
                except StreamerError as error:
                    await self._refuse(error)
                except redis.exceptions.RedisError as error:
                    await self._refuse(trouble_of(error).error)

    async def _handle(self, text: str) -> None:
        if len(text) > MAX_MESSAGE:
            raise StreamerError(
                ErrorCode.REQUEST_TOO_LARGE, f"A message has at most {MAX_MESSAGE} characters."
            )
        try:
            message = _messages.validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(str(part) for part in first["loc"])
            raise StreamerError(
                ErrorCode.INVALID_REQUEST, f"'{place}': {first['msg']}: see docs/events.md."
            ) from None
        if isinstance(message, Subscribe):
            await self._subscribe(message)
        elif self._unacknowledged.get(message.stream_id, ("", 0.0))[0] == message.frame:
            del self._unacknowledged[message.stream_id]
            self._news.set()

    async def _subscribe(self, wish: Subscribe) -> None:
        if wish.after is not None and not is_position(wish.after):
            raise StreamerError(
                ErrorCode.INVALID_REQUEST, f"'{wish.after[:80]}' is not the id of an event."
            )
        wants = EventFilter.of(wish.streams, wish.events)
        frames = wish.frames or Frames(streams=[])
        watched = await run_in_threadpool(self._resolve, frames.streams)
        filmed = await run_in_threadpool(self._resolve, wish.video.streams if wish.video else [])
        await self._stop()
        if wish.events != []:
            start = await self._hub.begin(wish.after)
            self._spawn(self._send_events(self._hub.follow(start, wants)))
        if watched:
            self._spawn(self._send_pictures(watched, frames))
        for query_id in dict.fromkeys(wish.queries):
            self._spawn(self._send_answer(query_id))
        await self._show(filmed)

    def _resolve(self, streams: list[str]) -> list[tuple[str, str]]:
        """Return the id of each stream, once, and how the socket calls it."""
        found = {self._client.registry.get(ref).id: ref for ref in streams}
        return list(found.items())

    async def _show(self, streams: list[tuple[str, str]]) -> None:
        """Send the video of `streams`. One that is sent already goes on without a break."""
        ended = [self._films.pop(film) for film in self._films.keys() - set(streams)]
        for task in ended:
            task.cancel()
        await asyncio.gather(*ended, return_exceptions=True)
        for film in streams:
            if film not in self._films or self._films[film].done():
                self._films[film] = asyncio.create_task(self._attempt(self._send_video(*film)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.create_task(self._attempt(work)))

    async def _attempt(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except _TooSlow:
            self._slow.set()
        except StreamerError as error:
            with contextlib.suppress(_TooSlow):
                await self._refuse(error)
        except (WebSocketDisconnect, RuntimeError):
            pass  # the socket is closed, which ends the reader too

    async def _stop(self) -> None:
        tasks, self._tasks = self._tasks, set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._unacknowledged.clear()

    async def _send_events(self, notices: AsyncIterator[Any]) -> None:
        async for notice in notices:
            if notice.name in ("hello", "resync"):
                message = json.loads(notice.data) | {"position": notice.position}
                await self._send(json.dumps({"type": notice.name, **message}))
            else:
                await self._send(f'{{"type": "event", "event": {notice.data}}}')
        raise _TooSlow

    async def _send_answer(self, query_id: str) -> None:
        async for step in query_progress.follow(self._client, self._hub, query_id):
            about = json.dumps({"type": f"query.{step.name}", "query_id": query_id})
            await self._send(f'{about[:-1]}, "data": {step.data}}}')

    async def _send_pictures(self, streams: list[tuple[str, str]], wish: Frames) -> None:
        """Send each new picture, the newest only, when the one before it is acknowledged."""
        sent: dict[Feed, tuple[str, float]] = {}
        with self._pictures.watch(streams, wish.width, wish.fps, self._news) as feeds:
            while True:
                for feed in feeds:
                    picture, now = feed.picture, time.monotonic()
                    frame, sent_at = sent.get(feed, ("", float("-inf")))
                    if (
                        picture is None
                        or picture.frame.id == frame
                        or feed.stream_id in self._unacknowledged
                        or now - sent_at < 0.9 / wish.fps
                    ):
                        continue
                    sent[feed] = picture.frame.id, now
                    self._unacknowledged[feed.stream_id] = picture.frame.id, now
                    await self._send(picture.message)
                oldest = min((at for _, at in self._unacknowledged.values()), default=None)
                if oldest is not None and time.monotonic() - oldest > SOCKET_PATIENCE:
                    raise _TooSlow
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), min(1.0, 1.0 / wish.fps))
                self._news.clear()

    async def _send_video(self, stream_id: str, stream: str) -> None:
        try:
            with self._videos.watch(stream_id, stream) as viewer:
                while True:
                    await self._send(await viewer.next())
        except StreamerError as error:
            reason = {"code": error.code.value, "message": error.message}
            about = {"stream": stream, "stream_id": stream_id, "error": reason}
            await self._send(json.dumps({"type": "video.refused", **about}))

    async def _refuse(self, error: StreamerError) -> None:
        reason = {"code": error.code.value, "message": error.message}
        await self._send(json.dumps({"type": "error", "error": reason}))

    async def _send(self, message: str | bytes) -> None:
        """Send one message. Raises _TooSlow if the other end does not take it in time."""
        try:
            async with asyncio.timeout(SOCKET_PATIENCE), self._turn:
                if isinstance(message, str):
                    await self._socket.send_text(message)
                else:
                    await self._socket.send_bytes(message)
        except TimeoutError:
            raise _TooSlow from None
