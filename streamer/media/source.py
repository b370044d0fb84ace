"""Read a stream or recording as decoded frames with reliable times."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple, Self, cast

import av
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from streamer.clock import Clock, SystemClock
from streamer.cores import usable_cores
from streamer.domain.stream import Transport
from streamer.errors import ErrorCode, StreamerError
from streamer.media import source_errors
from streamer.media.access_policy import AccessPolicy
from streamer.media.decoder import SparseDecoder
from streamer.media.hardware import Hardware
from streamer.media.packet_reader import MAX_PACKETS, Arrival, PacketReader
from streamer.media.sampler import Sampler
from streamer.media.timing import StreamTime, WallClock, to_seconds

_POLL = 0.25
"""Seconds between two checks whether to stop, while no packet arrives."""

_MAX_BLIND = 30.0
"""Seconds in which packets may arrive without any frame: enough for the rarest key frames."""

_MAX_BLIND_KEY_FRAMES = 120.0
"""The same if only key frames are decoded."""

_MIN_FIRST_WAIT = 1.0
"""Seconds to wait for the first packet, even if opening took long."""

_MIN_FRESH_WAIT = 0.01
"""Seconds: a packet that took longer than this to get was not buffered, but has just arrived."""

_MAX_FRESH_WAIT = 1.0
"""Seconds to wait for the first packet that was not buffered, before the first frame."""

_MAX_SEGMENT_GAP = 30.0
"""Seconds between two segments of a live playlist."""

_MAX_RECORDING_THREADS = 4

_RECORDING_PACKETS = 16
"""Packets of a recording that are taken from their reader at once."""


@dataclass(frozen=True)
class SourceInfo:
    """Description of a source; unknown values are None."""

    codec: str
    width: int
    height: int
    fps: float | None
    duration: float | None
    format: str
    live: bool
    profile: str | None = None
    bit_rate: int | None = None


class DecodedFrame(NamedTuple):
    """One frame, in presentation order.

    Attributes:
        pts: stream time, seconds since the first frame.
        time: wall clock of its capture, seconds since the Unix epoch.
        epoch: number of jumps of the source's clock and of steps of this machine's clock.
        decode_ms: milliseconds to decode the frame.
    """

    image: VideoFrame
    pts: float
    time: float
    epoch: int
    decode_ms: float


class Source:
    """Opens `url` and yields its frames: ``with Source(url, live=True) as source: ...``.

    Args:
        live: whether the source is a live stream: its end is a lost connection.
        open_timeout: seconds to open the source.
        read_timeout: seconds to wait for the next packet.
        stopping: returns whether to stop; noticed within a quarter of a second. FFmpeg may still be
            blocked then, in a thread that is left behind.
        origin: wall clock of the start of a recording, seconds since the Unix epoch.
        start: seconds of a recording to skip; it starts at the key frame before.
        sampler: returns the sampler whose frames are needed. It is called for each packet, so the
            sampler may change. Only what its frames need is decoded; other frames may be among
            them. Without one, all frames are decoded.
        poll: seconds between two requests of a snapshot URL.
        shift: returns the seconds by which the sampler's time is ahead of stream time.
        tap: called with each packet as it arrives, see `PacketReader`.

    `__enter__` and iteration raise StreamerError with a stream code; `__enter__` raises CANCELLED
    if `stopping` becomes true. Iteration ends at the end of a recording, and when stopping.
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
        poll: float = 1.0,
        shift: Callable[[], float] = lambda: 0.0,
        tap: Callable[[Arrival], None] | None = None,
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
            poll=poll,
            tap=tap,
        )
        self._info: SourceInfo | None = None
        self._taken: deque[Arrival] = deque()
        self._look_at = 0.0  # monotonic, when to look again whether to stop
        self._reached = 0.0
        self._open_until = math.inf
        self.decoded = 0

    @property
    def info(self) -> SourceInfo:
        """Description of the source, once it is open."""
        assert self._info is not None, "the source is not open"
        return self._info

    @property
    def codec(self) -> str:
        """Current codec of the video: broadcasts change it."""
        return self._decoder.codec or self.info.codec

    @property
    def packets(self) -> int:
        """Number of video packets received."""
        return self._reader.packets

    @property
    def bytes(self) -> int:
        """Bytes of video received."""
        return self._reader.bytes

    @property
    def corrupt(self) -> int:
        """Number of damaged packets; each costs its own frame, not the stream."""
        return self._decoder.corrupt if self._info is not None else 0

    @property
    def lacks_parameter_sets(self) -> bool:
        """Whether packets arrived, but nothing that says how they are encoded: no SPS."""
        return bool(self._reader.packets) and self._reader.lacks_parameter_sets

    @property
    def by_arrival(self) -> bool:
        """Whether the source's clock is wrong, so that frames are dated by arrival."""
        return self._reader.by_arrival

    @property
    def reader(self) -> PacketReader:
        """The packet reader, which outlives this object while FFmpeg blocks; see its `released`."""
        return self._reader

    @property
    def dropped(self) -> int:
        """Number of packets of a live source dropped because decoding did not keep up."""
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
        self._taken.clear()
        self._decoder.drop_held()
        self._reader.close(wait=_POLL)

    def __iter__(self) -> Iterator[DecodedFrame]:
        blind: float | None = None  # since when the decoder has returned no frame
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
            elif self._decoder.fed > fed or self._decoder.key_frames_only:
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
        if self._live and not self.decoded and self.lacks_parameter_sets:
            return self._read_timeout
        return max(
            _MAX_BLIND_KEY_FRAMES if self._decoder.key_frames_only else _MAX_BLIND,
            self._read_timeout,
        )

    def _blind(self) -> StreamerError:
        if self._live and self.decoded:
            return source_errors.changed(self._url)
        if not self.decoded and self.lacks_parameter_sets:
            return source_errors.no_parameter_sets(self._url, self.info.codec)
        if self._decoder.key_frames_only:
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
            # Frame threads would delay frames, and dozens of streams share the cores.
            context.thread_count, context.thread_type = 1, "NONE"
        else:
            context.thread_count, context.thread_type = recording_threads(), "AUTO"
        self._time_base = stream.time_base or Fraction(1, 90_000)
        fps = _rate(stream.guessed_rate) or _rate(stream.average_rate)
        # a finite playlist over HTTP has a duration; that of a camera is meaningless
        finite = not self._live or container.format.name == "hls"
        length = None
        if finite and stream.duration is not None:
            length = float(stream.duration * self._time_base)
        elif finite and container.duration is not None:
            length = container.duration / av.time_base
        self._info = SourceInfo(
            codec=context.codec.canonical_name,  # not the decoder's, such as libdav1d
            width=context.width,
            height=context.height,
            fps=fps,
            duration=length or None,
            format=container.format.name,
            live=self._live,
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
            max_pixels=self._reader.max_pixels,
            sampler=self._sampler,
            shift=self._shift,
        )

    def _held_back(self) -> deque[Arrival]:
        """Return the packets that FFmpeg buffered while it opened the stream, and the next one.

        Buffered packets arrived earlier than they seem to. Only the next one has a true arrival
        time, so it is observed before any frame gets its capture time.
        """
        held: deque[Arrival] = deque()
        waited = 0.0
        until = time.monotonic() + _MAX_FRESH_WAIT
        while waited < _MIN_FRESH_WAIT and len(held) < MAX_PACKETS // 2:
            began = time.monotonic()
            arrival = self._next(until)
            waited = time.monotonic() - began
            if arrival is None:
                break
            held.append(arrival)
        return held

    def _observed(self, arrival: Arrival) -> Arrival:
        """Return `arrival`, once the clock has seen it."""
        packet = arrival.packet
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is not None:
            self._wall_clock.observe(
                to_seconds(stamp, self._time_base), arrival.time, arrival.monotonic, arrival.epoch
            )
        return arrival

    def _origin_of(self, container: InputContainer) -> float | None:
        """Return the timestamp of stream time 0; None: that of the first frame."""
        if self._live:
            return None
        start = cast("int | None", container.start_time)
        if start is None:
            return 0.0 if self._start > 0 else None
        return start / av.time_base

    def _next(self, until: float = math.inf) -> Arrival | None:
        """Return the next packet; None at the end, when stopping, or at `until` (monotonic)."""
        if self._taken and time.monotonic() < self._look_at:
            return self._observed(self._taken.popleft())
        waited, patience = 0.0, self._patience_for_packets(time.monotonic())
        while not self._stopping() and (began := time.monotonic()) < until:
            self._look_at = began + _POLL / 2
            if not self._taken:
                self._taken.extend(self._take())
            if self._taken:
                return self._observed(self._taken.popleft())
            if self._reader.ended:
                return None
            waited += time.monotonic() - began
            if waited > patience:
                if not self._reader.packets:  # silent since opening began
                    patience = time.monotonic() - self._open_until + self._open_timeout
                raise self._reader.reason or source_errors.timed_out(self._url, patience)
        return None

    def _patience_for_packets(self, now: float) -> float:
        """Return for how many seconds to wait for a packet, from `now` (monotonic) on."""
        if self._reader.segmented:
            return max(self._read_timeout, _MAX_SEGMENT_GAP)
        if self._live and not self._reader.packets:
            # a source that never sends anything is not open
            return min(self._read_timeout, max(_MIN_FIRST_WAIT, self._open_until - now))
        return self._read_timeout

    def _take(self) -> list[Arrival]:
        try:
            # of a live source one: the reader may still drop those that wait
            return self._reader.take(_POLL, 1 if self._live else _RECORDING_PACKETS)
        except StreamerError as error:
            broke_off = error.code is ErrorCode.STREAM_NO_VIDEO and self.decoded
            raise source_errors.damaged(self._url, self._reached) if broke_off else error from None

    def _frame(self, image: VideoFrame, arrival: Arrival, cost: float) -> DecodedFrame:
        stamp = image.pts if image.pts is not None else image.dts
        timestamp = to_seconds(stamp, self._time_base) if stamp is not None else None
        seconds = self._reached = self._stream_time.place(timestamp, arrival.monotonic)
        wall = self._wall_origin + seconds
        if self._live:
            wall = self._wall_clock.at(timestamp, arrival.time)
        epoch = arrival.epoch + self._wall_clock.steps
        return DecodedFrame(image, seconds, wall, epoch, cost)


def recording_threads() -> int:
    """Return how many threads decode a recording: 1 to 4, and one fewer than there are cores. The
    thread that measures and encodes its frames is as busy as they are."""
    return max(1, min(_MAX_RECORDING_THREADS, usable_cores() - 1))


def _rate(value: Fraction | None) -> float | None:
    """Return the frames per second; None if the number is a time base instead."""
    return float(value) if value and 0.05 <= value <= 300 else None


def inspect_source(
    url: str,
    timeout: float = 10.0,
    access: AccessPolicy | None = None,
    transport: Transport = "auto",
    live: bool | None = None,
) -> SourceInfo:
    """Open `url`, decode one frame, close it, and describe it, within three `timeout`.

    Args:
        live: whether it is live; None decides by opening it.

    Raises StreamerError with a stream code if the source cannot be used.
    """
    from streamer.media.liveness import detect_live

    access = access or AccessPolicy()
    if live is None:
        live = detect_live(url, access=access, timeout=timeout)
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
                info.codec, image.width, image.height, info.fps, info.duration, info.format, live
            )
    raise source_errors.cannot_decode(url, None)
