"""Relay the video of watched streams: packets become pieces that browsers play.

The thread that reads a stream's packets hands each to a :class:`VideoTap`, which does
nothing without viewers. Otherwise it remuxes them. One thread of the process asks which
streams are watched, and moves what has been remuxed to Redis.
"""

import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Iterator

import av
import redis
import structlog

from streamer.clock import Clock
from streamer.media.packet_reader import Arrival
from streamer.media.remuxer import CODECS, Fragment, Remuxer
from streamer.redis_client.outage import Outage
from streamer.sources.live_video import MAX_VIDEO_BYTES, LiveVideo, VideoPiece

TICK = 0.1
"""Seconds of video in a piece, about."""

_IDLE_TICK = 0.25
"""Seconds between two looks whether a stream is watched, while none is."""

_MAX_FAILURES = 5
"""Key frames of a connection that may fail to be remuxed before it is given up."""

_log = structlog.get_logger(__name__)


class VideoTap:
    """Remuxes the packets of one connection while its stream is watched.

    Call it in the thread that reads the packets. It never raises.

    Args:
        wanted: returns whether the stream is watched.
        max_pixels: of a frame.
        clock: numbers the runs.
    """

    def __init__(self, wanted: Callable[[], bool], max_pixels: int, clock: Clock) -> None:
        self._wanted = wanted
        self._max_pixels = max_pixels
        self._clock = clock
        self._remuxer: Remuxer | None = None
        self._failures = 0
        self._lock = threading.Lock()
        self._pending: deque[VideoPiece] = deque()
        self._bytes = 0  # of the pending pieces
        self._numbers = itertools.count()
        self._run = 0
        self._init = b""  # of the run
        self._need_key = True

    def __call__(self, arrival: Arrival) -> None:
        """Take the next packet."""
        packet = arrival.packet
        if not self._wanted():
            self._remuxer = None
            return
        if self._failures >= _MAX_FAILURES:
            return
        try:
            if self._remuxer is None:
                if not packet.is_keyframe:
                    return
                codec = packet.stream.codec_context.codec.canonical_name
                if arrival.codec or codec not in CODECS:
                    self._failures = _MAX_FAILURES
                    return
                self._remuxer = Remuxer(packet.stream, self._max_pixels)
                self._init = b""
            fragments = self._remuxer.mux(packet)
        except (av.FFmpegError, ValueError) as error:
            self._remuxer = None
            self._failures += 1
            _log.debug("not_remuxed", reason=type(error).__name__)
            return
        for fragment in fragments:
            self._add(fragment, arrival.time)

    def take(self) -> list[VideoPiece]:
        """Return the pieces that are ready. Call it in another thread."""
        with self._lock:
            taken = list(self._pending)
            self._pending.clear()
            self._bytes = 0
        return taken

    def _add(self, fragment: Fragment, time: float) -> None:
        if fragment.init != self._init:
            self._init = fragment.init
            self._run = max(self._run + 1, round(self._clock.time() * 1000))
            self._numbers = itertools.count()
        with self._lock:
            if self._bytes + len(fragment.data) > MAX_VIDEO_BYTES:  # Redis does not take them
                self._pending.clear()
                self._bytes, self._need_key = 0, True
            if self._need_key and not fragment.key:
                next(self._numbers)
                return
            self._need_key = False
            self._bytes += len(fragment.data)
            last = self._pending[-1] if self._pending else None
            if last is not None and last.run == self._run and not fragment.key:
                data = last.data + fragment.data
                self._pending[-1] = VideoPiece(
                    last.run, last.number, last.time, data, last.init, last.mime
                )
                return
            init, mime = (fragment.init, fragment.mime) if fragment.key else (b"", "")
            number = next(self._numbers)
            self._pending.append(VideoPiece(self._run, number, time, fragment.data, init, mime))


class VideoOutlet:
    """The way of one stream's video to Redis, over all its connections."""

    def __init__(self, relay: "VideoRelay", stream_id: str) -> None:
        self._relay = relay
        self.stream_id = stream_id
        self._tap: VideoTap | None = None
        self._kept: deque[tuple[str, int, bool]] = deque()  # id, bytes, whether it is a key frame

    def tap(self, max_pixels: int) -> VideoTap:
        """Return what takes the packets of the next connection; that of the last one ends."""
        self._tap = VideoTap(self._wanted, max_pixels, self._relay.clock)
        return self._tap

    def _wanted(self) -> bool:
        return self.stream_id in self._relay.wanted

    def move(self, video: LiveVideo) -> int:
        """Move pieces to Redis; return their bytes. Raises redis.exceptions.RedisError."""
        pieces = self._tap.take() if self._tap is not None else []
        if not self._wanted():
            if self._kept:
                self._kept.clear()
                video.discard(self.stream_id)
            return 0
        if not pieces:
            return 0
        ids = video.add(self.stream_id, pieces, self._oldest())
        self._kept.extend(
            (place, piece.size, piece.key) for place, piece in zip(ids, pieces, strict=True)
        )
        return sum(piece.size for piece in pieces)

    def _oldest(self) -> str | None:
        """Return the id of the oldest piece that is still needed: viewers that are a little behind
        need the frames before the newest key frame too."""
        keys = [n for n, (_, _, key) in enumerate(self._kept) if key]
        for _ in range(keys[-2] if len(keys) > 1 else 0):
            self._kept.popleft()
        while sum(size for _, size, _ in self._kept) > MAX_VIDEO_BYTES:
            self._kept.popleft()
        return self._kept[0][0] if self._kept else None


class VideoRelay:
    """The outlets of a process. Its thread runs while there is one.

    Attributes:
        wanted: ids of the streams that are watched.
    """

    def __init__(self, video: LiveVideo, outage: Outage, clock: Clock) -> None:
        self._video = video
        self._outage = outage
        self.clock = clock
        self.wanted: frozenset[str] = frozenset()
        self._changed = threading.Condition()
        self._outlets: list[VideoOutlet] = []
        self._thread: threading.Thread | None = None
        self._moved = 0  # bytes

    @contextlib.contextmanager
    def outlet(self, stream_id: str) -> Iterator[VideoOutlet]:
        """Open the outlet of a stream that is run."""
        outlet = VideoOutlet(self, stream_id)
        with self._changed:
            self._outlets.append(outlet)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="video-relay", daemon=True)
                self._thread.start()
        try:
            yield outlet
        finally:
            with self._changed:
                self._outlets.remove(outlet)
                self._changed.notify_all()

    def numbers(self) -> dict[str, float]:
        """Return what `/metrics` shows of this process."""
        with self._changed:
            own = {outlet.stream_id for outlet in self._outlets}
        return {"video_streams": len(own & self.wanted), "video_bytes": self._moved}

    def _work(self) -> None:
        pauses = self._outage.pauses()
        pause = 0.0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: not self._outlets, pause)
                if not self._outlets:
                    self._thread = None
                    return
                outlets = list(self._outlets)
            try:
                self.wanted = self._video.wanted()
                for outlet in outlets:
                    self._moved += outlet.move(self._video)
            except redis.exceptions.RedisError as error:
                self._outage.failed("video", error)
                self.wanted = frozenset()
                pause = next(pauses)
                continue
            self._outage.worked("video")
            pauses = self._outage.pauses()
            own = {outlet.stream_id for outlet in outlets}
            pause = TICK if own & self.wanted else _IDLE_TICK
