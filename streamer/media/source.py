"""A stream or a recording as decoded frames, with times that can be trusted."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Self, cast

import av
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from streamer.clock import Clock, SystemClock
from streamer.errors import ErrorCode, StreamerError
from streamer.media import failures
from streamer.media.reader import MAX_PACKETS, Arrival, PacketReader
from streamer.media.timing import StreamTime, WallClock

_POLL = 0.25
"""Seconds between two looks at whether to stop, while nothing comes."""

_BLIND = 30.0
"""Seconds that packets may come without one picture: long enough for the rarest key frames."""

_FRESH = 0.01
"""Seconds after which a packet was waited for, rather than lying ready."""

_RECORDING_THREADS = 4


@dataclass(frozen=True)
class SourceInfo:
    """What a source says it is; None where it does not say."""

    codec: str
    width: int
    height: int
    fps: float | None
    duration: float | None
    format: str


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One picture in presentation order.

    `pts` is stream time in seconds since the first frame, `time` the wall clock (seconds since
    the Unix epoch) of its capture, `epoch` counts jumps of the source's own timestamps.
    """

    image: VideoFrame
    pts: float
    time: float
    epoch: int
    decode_ms: float


class Source:
    """Opens `url` and yields its frames: ``with Source(url, live=True) as source: ...``.

    Nothing in here waits longer than `open_timeout` or `read_timeout` for the source, or a
    quarter of a second for `stopping` to be seen; what FFmpeg does meanwhile, it does in a thread
    that is left behind. A recording's wall clock is `origin` (epoch seconds) plus stream time;
    `start` seconds of it are skipped, to the key frame before.

    Raises StreamerError with a stream code from `__enter__` and while iterating; CANCELLED from
    `__enter__` when `stopping` said so. Iteration just ends when `stopping`, or a recording, does.
    """

    def __init__(
        self,
        url: str,
        *,
        live: bool,
        open_timeout: float = 10.0,
        read_timeout: float = 10.0,
        stopping: Callable[[], bool] = lambda: False,
        origin: float = 0.0,
        start: float = 0.0,
        clock: Clock | None = None,
    ) -> None:
        self._url = url
        self._live = live
        self._open_timeout = open_timeout
        self._read_timeout = read_timeout
        self._stopping = stopping
        self._wall_origin = origin
        self._start = start
        self._clock = clock or SystemClock()
        self._reader = PacketReader(
            url,
            live=live,
            open_timeout=open_timeout,
            read_timeout=read_timeout,
            start=start,
            wall=self._clock.time,
        )
        self._info: SourceInfo | None = None
        self._reached = 0.0
        self.decoded = 0
        self.corrupt = 0

    @property
    def info(self) -> SourceInfo:
        """What the source says it is, once open."""
        assert self._info is not None, "the source is not open"
        return self._info

    @property
    def packets(self) -> int:
        """Video packets that came."""
        return self._reader.packets

    @property
    def bytes(self) -> int:
        """Bytes of video that came."""
        return self._reader.bytes

    @property
    def dropped(self) -> int:
        """Packets of a live source given up, undecoded, because this machine was late."""
        return self._reader.dropped

    def __enter__(self) -> Self:
        self._reader.start()
        try:
            self._wait_open()
            self._prepare()
        except BaseException:
            self._reader.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._reader.close(wait=_POLL)

    def __iter__(self) -> Iterator[DecodedFrame]:
        progress = time.monotonic()
        held = self._held_back() if self._live else deque()
        while (arrival := held.popleft() if held else self._next()) is not None:
            began = time.perf_counter()
            images = self._decode(arrival)
            cost = (time.perf_counter() - began) * 1000 / max(1, len(images))
            for image in images:
                self.decoded += 1
                yield self._frame(image, arrival.time, cost)
            if images:
                progress = time.monotonic()
            elif time.monotonic() - progress > max(_BLIND, self._read_timeout):
                raise failures.cannot_decode(self._url, self.info.codec)
        if self._stopping():
            return
        if self._live:
            raise failures.closed(self._url)
        if not self.decoded:
            raise failures.cannot_decode(self._url, self.info.codec)

    def _wait_open(self) -> None:
        deadline = time.monotonic() + self._open_timeout
        while not self._reader.wait_open(min(_POLL, self._open_timeout)):
            if self._stopping():
                raise StreamerError(ErrorCode.CANCELLED, "Stopped while connecting.")
            if time.monotonic() > deadline:
                raise failures.timed_out(self._url, self._open_timeout)

    def _prepare(self) -> None:
        container, stream = self._reader.container, self._reader.stream
        if container is None or stream is None:
            raise failures.closed(self._url)
        context: VideoCodecContext = stream.codec_context
        if self._live:
            # Frame threads would hold pictures back, and dozens of streams share the cores.
            context.thread_count, context.thread_type = 1, "NONE"
        else:
            context.thread_count, context.thread_type = _RECORDING_THREADS, "AUTO"
        self._context = context
        self._time_base = stream.time_base or Fraction(1, 90_000)
        fps = _rate(stream.guessed_rate) or _rate(stream.average_rate)
        length = None if self._live else container.duration
        self._info = SourceInfo(
            codec=context.name,
            width=context.width,
            height=context.height,
            fps=fps,
            duration=length / av.time_base if length else None,
            format=container.format.name,
        )
        self._stream_time = StreamTime(
            live=self._live, origin=self._origin_of(container), gap=1 / (fps or 25.0)
        )
        self._wall_clock = WallClock()

    def _held_back(self) -> deque[Arrival]:
        """The packets that FFmpeg kept while it looked at the stream, up to the first fresh one.

        They came earlier than they seem to: only the fresh one tells when, so it is observed
        before any picture gets its wall clock.
        """
        held: deque[Arrival] = deque()
        waited = 0.0
        while waited < _FRESH and len(held) < MAX_PACKETS // 2:
            began = time.monotonic()
            arrival = self._next()
            waited = time.monotonic() - began
            if arrival is None:
                break
            held.append(arrival)
        return held

    def _observe(self, arrival: Arrival) -> None:
        packet = arrival.packet
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None:
            self._wall_clock.observe(float(stamp * self._time_base), arrival.time)

    def _origin_of(self, container: InputContainer) -> float | None:
        """Timestamp of stream time 0; None: that of the first frame."""
        if self._live:
            return None
        start = cast("int | None", container.start_time)
        if start is None:
            return 0.0 if self._start > 0 else None
        return start / av.time_base

    def _next(self) -> Arrival | None:
        """The next packet; None at the end and when stopping."""
        waited = 0.0
        while not self._stopping():
            began = time.monotonic()
            arrival = self._get()
            if arrival is not None:
                self._observe(arrival)
                return arrival
            if self._reader.ended:
                return None
            waited += time.monotonic() - began
            if waited > self._read_timeout:
                raise failures.timed_out(self._url, self._read_timeout)
        return None

    def _get(self) -> Arrival | None:
        try:
            return self._reader.get(_POLL)
        except StreamerError as error:
            broke_off = error.code is ErrorCode.STREAM_NO_VIDEO and self.decoded
            raise failures.damaged(self._url, self._reached) if broke_off else error from None

    def _decode(self, arrival: Arrival) -> list[VideoFrame]:
        try:
            return self._context.decode(arrival.packet)
        except av.EOFError:
            return []
        except (av.FFmpegError, ValueError):
            self.corrupt += 1  # a damaged packet costs its own picture, not the stream
            return []

    def _frame(self, image: VideoFrame, arrival: float, cost: float) -> DecodedFrame:
        stamp = image.pts if image.pts is not None else image.dts
        timestamp = float(stamp * self._time_base) if stamp is not None else None
        moment = self._stream_time.place(timestamp, arrival)
        self._reached = moment.seconds
        wall = (
            self._wall_clock.at(timestamp, arrival)
            if self._live
            else self._wall_origin + moment.seconds
        )
        return DecodedFrame(image, moment.seconds, wall, moment.epoch, cost)


def _rate(value: Fraction | None) -> float | None:
    """Frames per second, unless the number is a time base in disguise."""
    return float(value) if value and 0.05 <= value <= 300 else None


def probe(url: str, timeout: float = 10.0) -> SourceInfo:
    """Open `url`, decode one picture and close it again: what it is, within two `timeout`.

    Raises StreamerError with the stream code that says why it cannot be used.
    """
    from streamer.media.urls import is_live

    live = is_live(url)
    with Source(url, live=live, open_timeout=timeout, read_timeout=timeout) as source:
        for frame in source:
            image, info = frame.image, source.info
            return SourceInfo(
                info.codec, image.width, image.height, info.fps, info.duration, info.format
            )
    raise failures.cannot_decode(url, None)
