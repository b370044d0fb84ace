"""The video of streams for the sockets of this process: read once, whatever the number of viewers.

A viewer that is too slow skips to the next key frame, so that its queue stays bounded.
"""

import asyncio
import contextlib
import json
import struct
import time
from collections import deque
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import redis
from starlette.concurrency import run_in_threadpool

from streamer.clock import Clock
from streamer.domain.timestamp import rfc3339, to_datetime
from streamer.errors import ErrorCode, StreamerError
from streamer.redis_client.outage import Outage
from streamer.sources.live_video import MAX_VIDEO_BYTES, MAX_WATCHED, RENEWAL, LiveVideo, VideoPiece

MAX_QUEUED_BYTES = 4 << 20
"""Bytes that wait for one viewer; one that is further behind is skipped to a key frame."""

STALE = 3.0
"""Seconds after which the last piece of a stream is of a camera that is gone."""

_BLOCK = 0.2
"""Seconds for which the reader waits, before it looks at new viewers."""

_LENGTH = struct.Struct(">I")


@dataclass(eq=False)
class Viewer:
    """One viewer of one stream.

    Attributes:
        stream_id, stream: its id, and how the viewer calls it.
        refused: why there will be no video.
        skips: how often frames were left out because the viewer was too slow.
    """

    stream_id: str
    stream: str
    refused: StreamerError | None = None
    skips: int = 0
    _queue: deque[VideoPiece] = field(default_factory=deque)
    _bytes: int = 0
    _need_key: bool = True
    _run: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    def offer(self, piece: VideoPiece, *, gap: bool = False) -> None:
        """Queue a piece. With `gap`, pieces before it are missing."""
        if self._bytes + piece.size > MAX_QUEUED_BYTES and self._queue:
            self._queue.clear()
            self._bytes, self._need_key = 0, True
            self.skips += 1
        if (self._need_key or gap) and not piece.key:
            self._need_key = True
            return
        self._need_key = False
        self._queue.append(piece)
        self._bytes += piece.size
        self._news.set()

    def refuse(self, error: StreamerError) -> None:
        """End the video, because of `error`."""
        self.refused = error
        self._news.set()

    async def next(self) -> bytes:
        """Wait for a piece, and return it as a message: the length of a header as big-endian
        uint32, the header as JSON, and MP4. Raises the error of `refuse`."""
        while not self._queue:
            if self.refused is not None:
                raise self.refused
            self._news.clear()
            await self._news.wait()
        piece = self._queue.popleft()
        self._bytes -= piece.size
        start = piece.run != self._run
        self._run = piece.run
        header = {
            "type": "video",
            "stream": self.stream,
            "stream_id": self.stream_id,
            "time": rfc3339(to_datetime(piece.time)),
            **({"start": True, "content_type": piece.mime} if start else {}),
        }
        encoded = json.dumps(header).encode()
        data = piece.init + piece.data if start else piece.data
        return _LENGTH.pack(len(encoded)) + encoded + data


class _Film:
    """What this process has of one stream: the pieces since the newest key frame."""

    def __init__(self) -> None:
        self.viewers: list[Viewer] = []
        self.place: str | None = None  # of the newest piece in Redis; None: not looked yet
        self._since_key: deque[VideoPiece] = deque()
        self._last: VideoPiece | None = None

    def begin(self, viewer: Viewer, now: float) -> None:
        """Add a viewer, who begins with the newest key frame, unless the camera is gone."""
        self.viewers.append(viewer)
        if self._last is not None and now - self._last.time < STALE:
            for piece in self._since_key:
                viewer.offer(piece)

    def add(self, piece: VideoPiece) -> None:
        """Take the next piece, and give it to all viewers."""
        last, expected = self._last, 0
        if last is not None:
            if (piece.run, piece.number) <= (last.run, last.number):
                return  # it came twice, or from a worker that no longer runs the stream
            expected = last.number + 1 if piece.run == last.run else 0
        gap = piece.number != expected
        self._last = piece
        if piece.key or gap or sum(each.size for each in self._since_key) > MAX_VIDEO_BYTES:
            self._since_key.clear()
        if piece.key or self._since_key:
            self._since_key.append(piece)
        for viewer in self.viewers:
            viewer.offer(piece, gap=gap)


class Videos:
    """The films that are watched in this process. It belongs to the event loop.

    Attributes:
        skips: how often viewers that left were too slow, so that frames were left out.
    """

    def __init__(self, video: LiveVideo, outage: Outage, clock: Clock, *, max_viewers: int) -> None:
        self._video = video
        self._outage = outage
        self._clock = clock
        self._max_viewers = max_viewers
        self._films: dict[str, _Film] = {}
        self._task: asyncio.Task[None] | None = None
        self._said_at = float("-inf")  # monotonic, when it was last said what is watched
        self.skips = 0

    @property
    def viewers(self) -> int:
        """How many watch now."""
        return sum(len(film.viewers) for film in self._films.values())

    @contextlib.contextmanager
    def watch(self, stream_id: str, stream: str) -> Iterator[Viewer]:
        """Open the video of a stream, called `stream` by the viewer.

        Raises StreamerError(TOO_MANY_LISTENERS).
        """
        if self.viewers >= self._max_viewers:
            raise StreamerError(
                ErrorCode.TOO_MANY_LISTENERS,
                f"This server sends video to {self._max_viewers} viewers at once: close another "
                "page, or raise the setting max_video_viewers.",
            )
        viewer = Viewer(stream_id, stream)
        film = self._films.get(stream_id)
        if film is None:
            film = self._films[stream_id] = _Film()
            self._said_at = float("-inf")
        film.begin(viewer, self._clock.time())
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        try:
            yield viewer
        finally:
            self.skips += viewer.skips
            film.viewers.remove(viewer)
            if not film.viewers:
                del self._films[stream_id]

    async def _run(self) -> None:
        """Say what is watched, and read what comes, while anything is."""
        pauses = self._outage.pauses()
        try:
            while self._films:
                now = time.monotonic()
                speak = now - self._said_at >= RENEWAL
                if speak:
                    self._said_at = now
                places = {each: film.place for each, film in self._films.items()}
                try:
                    refused = (
                        await run_in_threadpool(self._video.want, [*places]) if speak else set()
                    )
                    found = await run_in_threadpool(self._read, places)
                except redis.exceptions.RedisError as error:
                    self._outage.failed("video", error)
                    self._said_at = float("-inf")
                    await asyncio.sleep(next(pauses))
                    continue
                self._outage.worked("video")
                pauses = self._outage.pauses()
                self._distribute(found, refused)
        finally:
            self._task = None

    def _read(self, places: Mapping[str, str | None]) -> dict[str, tuple[str, list[VideoPiece]]]:
        """Return the new place in each stream that has something new, and its new pieces."""
        known = {stream_id: place for stream_id, place in places.items() if place is not None}
        if len(known) == len(places):
            return {
                stream_id: (entries[-1][0], [piece for _, piece in entries])
                for stream_id, entries in self._video.read(known, _BLOCK).items()
            }
        found = {}
        for stream_id in places.keys() - known.keys():
            kept = self._video.kept(stream_id)
            fresh = kept and self._clock.time() - kept[-1][1].time < STALE
            place = kept[-1][0] if kept else "0-0"
            found[stream_id] = place, [piece for _, piece in kept] if fresh else []
        return found

    def _distribute(
        self, found: Mapping[str, tuple[str, list[VideoPiece]]], refused: AbstractSet[str]
    ) -> None:
        for stream_id, (place, pieces) in found.items():
            film = self._films.get(stream_id)
            if film is not None:
                film.place = place
                for piece in pieces:
                    film.add(piece)
        for stream_id in refused & self._films.keys():
            for viewer in self._films[stream_id].viewers:
                viewer.refuse(
                    StreamerError(
                        ErrorCode.TOO_MANY_LISTENERS,
                        f"The video of {MAX_WATCHED} streams is watched already: close some.",
                    )
                )
