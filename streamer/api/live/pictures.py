"""The newest pictures of streams, scaled once for all viewers of a size."""

import asyncio
import contextlib
import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import redis
import structlog
from starlette.concurrency import run_in_threadpool

from streamer.domain.frame import FrameRef
from streamer.domain.timestamp import rfc3339, to_datetime
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.store import FrameStore
from streamer.redis_client.outage import Outage

_log = structlog.get_logger(__name__)

MAX_FEEDS = 500
"""Pictures that one process makes: streams, times the sizes that they are watched in."""

MAX_PAUSE = 1.0
"""Seconds between two looks for new frames."""

_QUALITY = 80
_LENGTH = struct.Struct(">I")


@dataclass(frozen=True)
class Picture:
    """A frame as it is sent: a JPEG of `width` x `height` pixels."""

    frame: FrameRef
    stream: str
    width: int
    height: int
    jpeg: bytes

    @cached_property
    def message(self) -> bytes:
        """The length of a header as big-endian uint32, the header as JSON, and the JPEG."""
        header = {
            "type": "frame",
            "stream": self.stream,
            "stream_id": self.frame.stream_id,
            "frame": self.frame.id,
            "time": rfc3339(to_datetime(self.frame.time)),
            "width": self.width,
            "height": self.height,
            "content_type": "image/jpeg",
        }
        encoded = json.dumps(header).encode()
        return _LENGTH.pack(len(encoded)) + encoded + self.jpeg


@dataclass(eq=False)
class Feed:
    """The pictures of one stream in one size.

    Attributes:
        stream_id, stream: its id, and how viewers call it.
        width: maximum width in pixels.
        picture: the newest; None before the first.
    """

    stream_id: str
    stream: str
    width: int
    picture: Picture | None = None
    viewers: list[tuple[asyncio.Event, float]] = field(default_factory=list)

    @property
    def fps(self) -> float:
        """Pictures per second that its most demanding viewer wants."""
        return max((fps for _, fps in self.viewers), default=0.0)


class Pictures:
    """The feeds that are watched in this process. It belongs to the event loop."""

    def __init__(self, frames: FrameStore, outage: Outage) -> None:
        self._frames = frames
        self._outage = outage
        self._feeds: dict[tuple[str, str, int], Feed] = {}
        self._task: asyncio.Task[None] | None = None
        self._opened = asyncio.Event()

    @contextlib.contextmanager
    def watch(
        self, streams: Sequence[tuple[str, str]], width: int, fps: float, news: asyncio.Event
    ) -> Iterator[list[Feed]]:
        """Open the feeds of `streams` (ids, and how the viewer calls them).

        `news` is set when one has a new picture. Raises StreamerError(TOO_MANY_LISTENERS).
        """
        keys = [(stream_id, stream, width) for stream_id, stream in streams]
        if len(self._feeds.keys() | set(keys)) > MAX_FEEDS:
            raise StreamerError(
                ErrorCode.TOO_MANY_LISTENERS,
                f"This server makes pictures of {MAX_FEEDS} streams and sizes: watch fewer.",
            )
        viewer = (news, fps)
        feeds = [self._feeds.setdefault(key, Feed(*key)) for key in keys]
        for feed in feeds:
            feed.viewers.append(viewer)
        if feeds and self._task is None:
            self._task = asyncio.create_task(self._run())
        self._opened.set()
        try:
            yield feeds
        finally:
            for key, feed in zip(keys, feeds, strict=True):
                feed.viewers.remove(viewer)
                if not feed.viewers:
                    del self._feeds[key]

    async def _run(self) -> None:
        """Look for new frames as often as the most demanding viewer wants, while any watches.

        A viewer who comes in between waits for no other's turn.
        """
        try:
            while self._feeds:
                feeds = list(self._feeds.values())
                self._opened.clear()
                pause = min(MAX_PAUSE, 1.0 / max(feed.fps for feed in feeds))
                try:
                    changed = await run_in_threadpool(self._renew, feeds)
                except redis.exceptions.RedisError as error:
                    self._outage.failed("pictures", error)
                    pause = self._outage.max_pause
                except Exception:
                    _log.exception("pictures_failed")  # those who watch get the next ones
                    pause = MAX_PAUSE
                else:
                    self._outage.worked("pictures")
                    for feed, picture in changed:
                        feed.picture = picture
                        for news, _ in feed.viewers:
                            news.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._opened.wait(), pause)
        finally:
            self._task = None

    def _renew(self, feeds: Sequence[Feed]) -> list[tuple[Feed, Picture]]:
        """Return the new pictures of `feeds`: each frame is loaded once."""
        ids = list(dict.fromkeys(feed.stream_id for feed in feeds))
        newest = dict(zip(ids, self._frames.newest_of(ids), strict=True))
        jpegs: dict[str, bytes] = {}
        made: dict[tuple[str, int], tuple[int, int, bytes]] = {}
        changed = []
        for feed in feeds:
            frame = newest[feed.stream_id]
            if frame is None or (feed.picture is not None and feed.picture.frame.id == frame.id):
                continue
            try:
                if feed.stream_id not in jpegs:
                    jpegs[feed.stream_id] = self._frames.load([frame])[0]
                size = feed.stream_id, feed.width
                if size not in made:
                    made[size] = _scaled(jpegs[feed.stream_id], frame, feed.width)
            except (StreamerError, ValueError):
                continue  # it has expired meanwhile, or is damaged: the next one comes soon
            changed.append((feed, Picture(frame, feed.stream, *made[size])))
        return changed


def _scaled(jpeg: bytes, frame: FrameRef, width: int) -> tuple[int, int, bytes]:
    """Return width, height and JPEG of a frame that is at most `width` pixels wide."""
    if frame.width <= width:
        return frame.width, frame.height, jpeg
    from streamer.frames.jpeg import scale_jpeg  # imports OpenCV, which takes long

    size = width, max(1, round(frame.height * width / frame.width))
    return *size, scale_jpeg(jpeg, frame.width, frame.height, size, _QUALITY)
