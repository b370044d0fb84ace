"""A stream or a recording as decoded frames, with times that can be trusted."""

import math
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
from streamer.domain import Transport
from streamer.errors import ErrorCode, StreamerError
from streamer.media import source_errors
from streamer.media.access_policy import AccessPolicy
from streamer.media.decoder import SparseDecoder
from streamer.media.hardware import Hardware
from streamer.media.packet_reader import MAX_PACKETS, Arrival, PacketReader
from streamer.media.sampler import Sampler
from streamer.media.timing import StreamTime, WallClock

_POLL = 0.25
"""Seconds between two looks at whether to stop, while nothing comes."""

_BLIND = 30.0
"""Seconds that packets may come without one picture: long enough for the rarest key frames."""

_RARE = 120.0
"""The same when only key frames are decoded."""

_FIRST = 1.0
"""Seconds for the first packet at least, however long opening took."""

_FRESH = 0.01
"""Seconds after which a packet was waited for, rather than lying ready."""

_HELD = 1.0
"""Seconds that the first fresh packet is waited for before the first picture is shown."""

_SEGMENT = 30.0
"""Seconds between two segments of a live playlist at most."""

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
    profile: str | None = None
    bit_rate: int | None = None


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """One picture in presentation order.

    `pts` is stream time in seconds since the first frame, `time` the wall clock (seconds since
    the Unix epoch) of its capture, `epoch` counts the jumps of the source's clock and the steps
    of this machine's.
    """

    image: VideoFrame
    pts: float
    time: float
    epoch: int
    decode_ms: float


class Source:
    """Opens `url` and yields its frames: ``with Source(url, live=True) as source: ...``.

    With `sampler` only the frames that it may keep are sure to come, though others do too: what
    is not needed for them is not decoded. It is asked for anew each time, and may be exchanged;
    `shift` is what its time is ahead of stream time.

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
        hwaccel: Hardware = "none",
        transport: Transport = "auto",
        access: AccessPolicy | None = None,
        sampler: Callable[[], Sampler] | None = None,
        shift: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._url = url
        self._live = live
        self._open_timeout = open_timeout
        self._read_timeout = read_timeout
        self._stopping = stopping
        self._wall_origin = origin
        self._start = start
        self._clock = clock or SystemClock()
        self._sampler = sampler
        self._shift = shift
        self._reader = PacketReader(
            url,
            live=live,
            open_timeout=open_timeout,
            read_timeout=read_timeout,
            start=start,
            clock=self._clock,
            hwaccel=hwaccel,
            transport=transport,
            access=access,
        )
        self._info: SourceInfo | None = None
        self._reached = 0.0
        self._open_until = math.inf
        self.decoded = 0

    @property
    def info(self) -> SourceInfo:
        """What the source says it is, once open."""
        assert self._info is not None, "the source is not open"
        return self._info

    @property
    def codec(self) -> str:
        """What its pictures are coded in by now: broadcasts change it."""
        return self._decoder.codec or self.info.codec

    @property
    def packets(self) -> int:
        """Video packets that came."""
        return self._reader.packets

    @property
    def bytes(self) -> int:
        """Bytes of video that came."""
        return self._reader.bytes

    @property
    def corrupt(self) -> int:
        """Packets that were damaged: each costs its own picture, not the stream."""
        return self._decoder.corrupt if self._info is not None else 0

    @property
    def by_arrival(self) -> bool:
        """Whether the source's clock is wrong, so that frames are dated by their arrival."""
        return self._reader.by_arrival

    @property
    def reader(self) -> PacketReader:
        """What may outlive this object, when FFmpeg hangs in it; it tells when it is `released`."""
        return self._reader

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
        self._decoder.forget()
        self._reader.close(wait=_POLL)

    def __iter__(self) -> Iterator[DecodedFrame]:
        blind: float | None = None  # since when the decoder has been fed for nothing
        held = self._held_back() if self._live else deque()
        while (arrival := held.popleft() if held else self._next()) is not None:
            fed = self._decoder.fed
            began = time.perf_counter()
            images = self._decoder.decode(arrival)
            cost = (time.perf_counter() - began) * 1000 / max(1, len(images))
            for image in images:
                self.decoded += 1
                yield self._frame(image, arrival, cost)
            if images:
                blind = None
            elif self._decoder.fed > fed or self._decoder.alone:
                blind = blind or time.monotonic()
            if blind is not None and time.monotonic() - blind > self._patience:
                raise self._blind()
        if self._stopping():
            return
        if self._live:
            raise source_errors.closed(self._url)
        if not self.decoded:
            raise self._blind()

    @property
    def _patience(self) -> float:
        return max(_RARE if self._decoder.alone else _BLIND, self._read_timeout)

    def _blind(self) -> StreamerError:
        if self._live and self.decoded:
            return source_errors.changed(self._url)
        if self._decoder.alone:
            return source_errors.no_key_frames(self._url)
        return source_errors.cannot_decode(self._url, self.info.codec)

    def _wait_open(self) -> None:
        deadline = self._open_until = time.monotonic() + self._open_timeout
        while not self._reader.wait_open(min(_POLL, self._open_timeout)):
            if self._stopping():
                raise StreamerError(ErrorCode.CANCELLED, "Stopped while connecting.")
            if time.monotonic() > deadline:
                raise self._reader.reason or source_errors.timed_out(self._url, self._open_timeout)

    def _prepare(self) -> None:
        container, stream = self._reader.container, self._reader.stream
        if container is None or stream is None:
            raise source_errors.closed(self._url)
        context: VideoCodecContext = stream.codec_context
        if self._live or context.is_hwaccel:
            # Frame threads would hold pictures back, and dozens of streams share the cores.
            context.thread_count, context.thread_type = 1, "NONE"
        else:
            context.thread_count, context.thread_type = _RECORDING_THREADS, "AUTO"
        self._time_base = stream.time_base or Fraction(1, 90_000)
        fps = _rate(stream.guessed_rate) or _rate(stream.average_rate)
        # a playlist over HTTP that has an end says so; a camera's length means nothing
        finite = not self._live or container.format.name == "hls"
        length = container.duration if finite else None
        self._info = SourceInfo(
            codec=context.codec.canonical_name,  # not the decoder's, such as libdav1d
            width=context.width,
            height=context.height,
            fps=fps,
            duration=length / av.time_base if length else None,
            format=container.format.name,
            profile=context.profile,
            bit_rate=context.bit_rate or container.bit_rate or None,
        )
        self._stream_time = StreamTime(
            live=self._live, origin=self._origin_of(container), gap=1 / (fps or 25.0)
        )
        self._wall_clock = WallClock(bursts=self._reader.segmented)
        self._decoder = SparseDecoder(
            context,
            self._time_base,
            self._stream_time,
            live=self._live,
            sampler=self._sampler,
            shift=self._shift,
        )

    def _held_back(self) -> deque[Arrival]:
        """The packets that FFmpeg kept while it looked at the stream, up to the first fresh one.

        They came earlier than they seem to: only the fresh one tells when, so it is observed
        before any picture gets its wall clock.
        """
        held: deque[Arrival] = deque()
        waited = 0.0
        until = time.monotonic() + _HELD
        while waited < _FRESH and len(held) < MAX_PACKETS // 2:
            began = time.monotonic()
            arrival = self._next(until)
            waited = time.monotonic() - began
            if arrival is None:
                break
            held.append(arrival)
        return held

    def _observe(self, arrival: Arrival) -> None:
        packet = arrival.packet
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None:
            self._wall_clock.observe(
                float(stamp * self._time_base), arrival.time, arrival.monotonic, arrival.epoch
            )

    def _origin_of(self, container: InputContainer) -> float | None:
        """Timestamp of stream time 0; None: that of the first frame."""
        if self._live:
            return None
        start = cast("int | None", container.start_time)
        if start is None:
            return 0.0 if self._start > 0 else None
        return start / av.time_base

    def _next(self, until: float = math.inf) -> Arrival | None:
        """The next packet; None at the end, when stopping, and when it is `until` (monotonic)."""
        waited = 0.0
        patience = max(self._read_timeout, _SEGMENT if self._reader.segmented else 0.0)
        if self._live and not self._reader.segmented and not self._reader.packets:
            # a source that opens and never sends anything is not open
            patience = min(patience, max(_FIRST, self._open_until - time.monotonic()))
        while not self._stopping() and time.monotonic() < until:
            began = time.monotonic()
            arrival = self._get()
            if arrival is not None:
                self._observe(arrival)
                return arrival
            if self._reader.ended:
                return None
            waited += time.monotonic() - began
            if waited > patience:
                if not self._reader.packets:  # it has been silent since opening began
                    patience = time.monotonic() - self._open_until + self._open_timeout
                raise self._reader.reason or source_errors.timed_out(self._url, patience)
        return None

    def _get(self) -> Arrival | None:
        try:
            return self._reader.get(_POLL)
        except StreamerError as error:
            broke_off = error.code is ErrorCode.STREAM_NO_VIDEO and self.decoded
            raise source_errors.damaged(self._url, self._reached) if broke_off else error from None

    def _frame(self, image: VideoFrame, arrival: Arrival, cost: float) -> DecodedFrame:
        stamp = image.pts if image.pts is not None else image.dts
        timestamp = float(stamp * self._time_base) if stamp is not None else None
        seconds = self._reached = self._stream_time.place(timestamp, arrival.monotonic)
        wall = self._wall_origin + seconds
        if self._live:
            wall = self._wall_clock.at(timestamp, arrival.time)
        epoch = arrival.epoch + self._wall_clock.steps
        return DecodedFrame(image, seconds, wall, epoch, cost)


def _rate(value: Fraction | None) -> float | None:
    """Frames per second, unless the number is a time base in disguise."""
    return float(value) if value and 0.05 <= value <= 300 else None


def inspect_source(
    url: str,
    timeout: float = 10.0,
    access: AccessPolicy | None = None,
    transport: Transport = "auto",
) -> SourceInfo:
    """Open `url`, decode one picture and close it again: what it is, within two `timeout`.

    Raises StreamerError with the stream code that says why it cannot be used.
    """
    from streamer.media.urls import is_live

    live = is_live(url)
    with Source(
        url,
        live=live,
        open_timeout=timeout,
        read_timeout=timeout,
        access=access,
        transport=transport,
    ) as source:
        for frame in source:
            image, info = frame.image, source.info
            return SourceInfo(
                info.codec, image.width, image.height, info.fps, info.duration, info.format
            )
    raise source_errors.cannot_decode(url, None)
