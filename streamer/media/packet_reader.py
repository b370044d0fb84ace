"""Read packets in a separate thread, so that a source that hangs blocks nothing else.

FFmpeg blocks in `open` and `read`. Only PyAV's callback could interrupt it, and that takes the GIL
at every socket poll. So the thread owns the container: readers can stop waiting at any time, and
the thread closes the container when FFmpeg's own timeout releases it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import av
from av.bitstream import BitStreamFilterContext
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream

from streamer.clock import Clock, SystemClock
from streamer.domain.stream import Transport
from streamer.errors import StreamerError
from streamer.media import hardware, parameter_sets, rtsp_diagnosis, source_errors
from streamer.media.access_policy import AccessPolicy
from streamer.media.open import Opening, prepare
from streamer.media.source_clock import SourceClock
from streamer.media.timing import to_seconds
from streamer.media.video_follower import VideoFollower

MAX_PACKETS = 1024
MAX_PACKET_BYTES = 32 * 2**20

_CHANGEABLE = frozenset({"mpegts", "hls"})
_FILTERS = {
    "h264": "h264_metadata",
    "hevc": "hevc_metadata",
    "mpeg2video": "mpeg2_metadata",
    "av1": "av1_metadata",
    "vp9": "vp9_metadata",
}
"""By codec: a filter that accepts only streams of this codec."""

_MULTIPLEX = "mpegts"
"""The container in which a video may continue under another stream."""

_WITHOUT_PTS = frozenset({"avi"})
"""Containers that store decoding times only: FFmpeg guesses presentation times, wrongly where
frames are reordered."""

_LATE_SIZES = frozenset({"h264", "hevc", "av1", "vp8", "vp9", "mpeg4"})
"""Codecs whose frame size may still be unknown when a stream is open. That of any other codec is
known from the first frame on, unless the decoder refuses it."""

MAX_LAG = 4.0
"""Seconds that a packet of a live source may wait in the queue if there is a newer key frame."""


class Arrival(NamedTuple):
    """A packet with timestamps on the unrolled clock; the last packet of a source is empty.

    Attributes:
        time: when it arrived, seconds since the Unix epoch.
        monotonic: the same moment on the monotonic clock, seconds.
        epoch: how often the source's clock has jumped so far.
        codec: the codec to decode it with; "" for the one that the source began with.
    """

    packet: "Packet[Any]"
    time: float
    monotonic: float
    epoch: int = 0
    codec: str = ""


class PacketReader:
    """Opens `url` and queues its video packets.

    With a full queue, a recording waits. A live source loses its oldest packets, up to a key frame;
    `dropped` counts them. `tap` is called with each packet as it arrives, in the reading thread,
    before it is queued: it must be quick, and raise nothing.
    """

    def __init__(
        self,
        url: str,
        *,
        live: bool,
        open_timeout: float,
        read_timeout: float,
        start: float = 0.0,
        clock: Clock | None = None,
        hwaccel: hardware.Hardware = "none",
        transport: Transport = "auto",
        access: AccessPolicy | None = None,
        poll: float = 1.0,
        tap: Callable[[Arrival], None] | None = None,
    ) -> None:
        self._url = url
        self._live = live
        self._tap = tap
        self._open_timeout = open_timeout
        self._read_timeout = read_timeout
        self._start = start
        self._clock = clock or SystemClock()
        self._source_clock = SourceClock(live=live)
        self._hwaccel = hwaccel
        self._transport = transport
        self._access = access or AccessPolicy()
        self._poll = poll
        self._opening: Opening | None = None
        self._change = threading.Condition()
        self._queue: deque[Arrival] = deque()
        self._bytes = 0
        self._need_key = False
        self._time_bases: dict[int, Fraction] = {}  # by number of the stream
        self._waiting = False  # for room in the queue
        self._ended = False
        self._closed = False
        self._error: StreamerError | None = None
        self.container: InputContainer | None = None
        self.stream: VideoStream | None = None
        self.packets = 0
        self.bytes = 0
        self.dropped = 0
        self.lacks_parameter_sets = False
        """Whether no SPS has come yet, without which H.264 and H.265 cannot be decoded."""
        self.segmented = False
        """Whether a live source is requested segment by segment: then nothing is dropped, and long
        pauses are normal."""
        self._thread = threading.Thread(target=self._run, name="packet-reader", daemon=True)

    def start(self) -> None:
        """Start to open the source, in the background."""
        self._thread.start()

    def wait_open(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for the source to open. Raises StreamerError if it fails."""
        with self._change:
            self._change.wait_for(lambda: self.stream or self._error, timeout)
            if self.stream is None and self._error is not None:
                raise _copied(self._error)
            return self.stream is not None

    def get(self, timeout: float) -> Arrival | None:
        """Return the next packet; None after `timeout` seconds, or at the end.

        Raises StreamerError if the source failed, after the packets before the failure.
        """
        return next(iter(self.take(timeout, 1)), None)

    def take(self, timeout: float, most: int) -> list[Arrival]:
        """Return the next packets, at most so many; none after `timeout` seconds, or at the end.

        Raises StreamerError if the source failed, after the packets before the failure.
        """
        with self._change:
            if not self._queue and not self._ended:
                self._change.wait(timeout)
            if not self._queue:
                if self._error is not None:
                    raise _copied(self._error)
                return []
            taken = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
            self._bytes -= sum(arrival.packet.size for arrival in taken)
            if self._waiting and self._half_empty():
                self._change.notify_all()
            return taken

    @property
    def ended(self) -> bool:
        """Whether the source has ended and every packet was taken."""
        with self._change:
            return self._ended and not self._queue

    @property
    def reason(self) -> StreamerError | None:
        """Error of the opener, of which FFmpeg only sees the end of a file."""
        error = self._opening.error if self._opening is not None else None
        return _copied(error) if error is not None else None

    @property
    def by_arrival(self) -> bool:
        """Whether the source's clock is wrong, so that its packets are dated by their arrival."""
        return self._source_clock.by_arrival

    @property
    def released(self) -> bool:
        """Whether the thread has ended, or was never started."""
        return not self._thread.is_alive()

    def close(self, wait: float = 0.0) -> None:
        """Close the source: its thread ends as soon as FFmpeg returns.

        Blocks for at most `wait` seconds. No packet may be decoded afterwards.
        """
        with self._change:
            self._closed = True
            self._queue.clear()
            self._change.notify_all()
        if self._opening is not None:
            self._opening.interrupt()
        if wait and self._thread.ident is not None:
            self._thread.join(wait)

    def _run(self) -> None:
        began = time.monotonic()
        try:
            container = self._open()
        except Exception as error:
            self._end(
                self.reason
                or source_errors.from_exception(
                    error,
                    self._url,
                    waited=time.monotonic() - began,
                    timeout=self._open_timeout,
                    head=self._opening.head if self._opening is not None else None,
                )
            )
            self._close_opening()
            return
        try:
            with container:
                self._read(container)
        finally:
            self.container = self.stream = None
            self._close_opening()

    def _close_opening(self) -> None:
        if self._opening is not None:
            self._opening.close()

    def _open(self) -> InputContainer:
        return rtsp_diagnosis.explained(
            self._open_url,
            self._url,
            transport=self._transport,
            access=self._access,
            timeout=self._open_timeout,
        )

    def _open_url(self, url: str) -> InputContainer:
        self._opening = prepare(
            url,
            live=self._live,
            timeout=min(self._open_timeout, self._read_timeout),
            transport=self._transport,
            access=self._access,
            poll=self._poll,
        )
        # A camera that sends byte by byte never times out by itself. PyAV's timeout takes the GIL
        # at every poll: it is set for opening only. It is a little shorter than the wait of
        # `wait_open`, so that a camera whose key frame takes long still counts as open.
        arguments = dict(self._opening.arguments)
        # FFmpeg decodes a picture to find out its size; it must not be too large even then.
        options = {**arguments.pop("options", {}), "max_pixels": str(self.max_pixels)}
        return hardware.open_input(
            self._hwaccel,
            timeout=(0.9 * self._open_timeout, None),
            options=options,
            **arguments,
        )

    @property
    def max_pixels(self) -> int:
        """The pixels that a frame may have."""
        return self._access.max_live_pixels if self._live else self._access.max_pixels

    def _read(self, container: InputContainer) -> None:
        error: StreamerError | None = None
        try:
            stream = self._choose(container)
            self.segmented = self._live and container.format.name == "hls"
            if self._start > 0:
                self._seek(container)
            self.lacks_parameter_sets = parameter_sets.are_missing(stream)
            with self._change:
                self.container, self.stream = container, stream
                self._change.notify_all()
            self._source_clock = SourceClock(
                live=self._live, gap=_frame_distance(stream), bursts=self.segmented
            )
            for packet, codec in self._packets(container, stream):
                arrival = self._arrived(packet, codec)
                if self._tap is not None and packet.size and not self._closed:
                    self._tap(arrival)
                if not self._put(arrival):
                    return
        except Exception as failure:  # any error must reach the waiting reader
            error = source_errors.from_exception(failure, self._url, timeout=self._read_timeout)
        self._end(self.reason or error)
        with self._change:  # the container must outlive the queued packets
            self._change.wait_for(lambda: self._closed)

    def _packets(
        self, container: InputContainer, stream: VideoStream
    ) -> "Iterator[tuple[Packet[Any], str]]":
        """Yield the packets of the video, wherever it continues, and the codec of each; see
        `Arrival`. The last one is empty."""
        watch = _CodecWatch(container, stream)
        guessed = container.format.name in _WITHOUT_PTS
        if container.format.name != _MULTIPLEX:
            for packet in container.demux(stream):
                if guessed:
                    packet.pts = None
                yield packet, watch.after(packet)
            return
        follower, codec = VideoFollower(stream), ""
        for one in container.demux(tuple(_videos(container))):
            for followed in follower.follow(one) if one.size else follower.finish():
                codec = follower.codec or watch.after(followed)
                yield followed, codec
            if not one.size:
                yield one, codec
                return

    def _arrived(self, packet: "Packet[Any]", codec: str) -> Arrival:
        """Convert the timestamps of `packet` to the unrolled clock."""
        now, monotonic = self._clock.time(), self._clock.monotonic()
        base = self._time_base_of(packet)
        if not packet.size or base is None:
            return Arrival(packet, now, monotonic, self._source_clock.epoch, codec)
        pts, dts = packet.pts, packet.dts
        shown = None if pts is None else to_seconds(pts, base)
        decoded = None if dts is None else to_seconds(dts, base)
        unrolled = self._source_clock.unroll(
            shown, decoded, key=packet.is_keyframe, arrival=monotonic
        )
        # most clocks never jump: then the timestamps are right as they are
        if unrolled.pts is not None and unrolled.pts != shown:
            packet.pts = round(unrolled.pts / base)
        if unrolled.dts is not None and unrolled.dts != decoded:
            packet.dts = round(unrolled.dts / base)
        return Arrival(packet, now, monotonic, unrolled.epoch, codec)

    def _time_base_of(self, packet: "Packet[Any]") -> Fraction | None:
        """Return the time base of a packet, that of its stream: to ask for it takes longer."""
        known = self._time_bases.get(packet.stream_index)
        if known is None and (base := packet.time_base) is not None:
            known = self._time_bases[packet.stream_index] = base
        return known

    def _choose(self, container: InputContainer) -> VideoStream:
        videos = _videos(container)
        if not videos or container.format.name == "tty":  # FFmpeg renders text files as terminals
            raise source_errors.no_video(self._url)
        chosen = max(videos, key=lambda s: (s.codec_context is not None, s is videos[0]))
        if chosen.codec_context is None:
            raise source_errors.cannot_decode(self._url, None)
        self._limit_pixels(chosen)
        for stream in container.streams:
            if stream is not chosen and not (
                container.format.name == _MULTIPLEX and stream in videos
            ):
                stream.discard = Discard.all
        return chosen

    def _limit_pixels(self, stream: VideoStream) -> None:
        """Refuse frames that are too large, also those that are larger than the header says."""
        context = stream.codec_context
        most = self.max_pixels
        unknown = not context.width and context.codec.canonical_name not in _LATE_SIZES
        if unknown or context.width * context.height > most:
            raise source_errors.too_large(
                self._url, context.width, context.height, most, self._live
            )
        context.options = {**context.options, "max_pixels": str(most)}

    def _seek(self, container: InputContainer) -> None:
        origin = container.start_time or 0
        try:
            container.seek(origin + round(self._start * av.time_base))
        except (av.FFmpegError, OSError):
            return  # not seekable: read from the beginning

    def _put(self, arrival: Arrival) -> bool:
        packet = arrival.packet
        with self._change:
            if not self._live or self.segmented:
                self._wait_for_room()
            else:
                self._catch_up(arrival.monotonic)
            if self._closed:
                return False
            if packet.size:
                if self.lacks_parameter_sets:
                    self.lacks_parameter_sets = not parameter_sets.contained(packet)
                self.packets += 1
                self.bytes += packet.size
                if self._need_key and not packet.is_keyframe:
                    self.dropped += 1
                    return True
                self._need_key = False
            self._queue.append(arrival)
            self._bytes += packet.size
            if len(self._queue) == 1:
                self._change.notify_all()
        return True

    def _wait_for_room(self) -> None:
        if self._full():
            self._waiting = True
            self._change.wait_for(lambda: self._closed or self._half_empty())
            self._waiting = False

    def _catch_up(self, now: float) -> None:
        """Drop the oldest packets, up to the newest key frame, when the decoder is too slow."""
        late = bool(self._queue) and now - self._queue[0].monotonic > MAX_LAG
        if not (late or self._full()):
            return
        places = range(len(self._queue) - 1, 0, -1)
        key = next((n for n in places if self._queue[n].packet.is_keyframe), None)
        if key is None and not self._full():
            return  # the decoder can only continue at the next key frame
        self._need_key = key is None
        for _ in range(len(self._queue) if key is None else key):
            self._bytes -= self._queue.popleft().packet.size
            self.dropped += 1

    def _full(self) -> bool:
        return len(self._queue) >= MAX_PACKETS or self._bytes >= MAX_PACKET_BYTES

    def _half_empty(self) -> bool:
        return len(self._queue) <= MAX_PACKETS // 2 and self._bytes <= MAX_PACKET_BYTES // 2

    def _end(self, error: StreamerError | None) -> None:
        with self._change:
            self._error = error
            self._ended = True
            self._change.notify_all()


def _copied(error: StreamerError) -> StreamerError:
    """Return a copy to raise: what is raised refers to its callers, and they to this reader."""
    return StreamerError(error.code, error.message)


def _videos(container: InputContainer) -> list[VideoStream]:
    """Return the video streams, without the cover of an audio file (attached_pic)."""
    return [stream for stream in container.streams.video if not stream.disposition & 0x400]


def _frame_distance(stream: VideoStream) -> float:
    """Return the seconds between two frames according to the source; 0.04 if it is unknown."""
    rate: Fraction | None = stream.average_rate or stream.guessed_rate
    return float(1 / rate) if rate and 0.05 <= rate <= 300 else 0.04


class _CodecWatch:
    """Detects that a stream continues in another codec, as in broadcasts and playlists.

    PyAV reports the first codec of a stream, but a bitstream filter rejects all codecs but its own.
    """

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._stream = stream
        self._first = self._codec = stream.codec_context.codec.canonical_name
        self._watches = container.format.name in _CHANGEABLE and self._codec in _FILTERS

    def after(self, packet: "Packet[Any]") -> str:
        """Return the codec of `packet`; "" for the first codec of the stream."""
        if self._watches and packet.is_keyframe and not self._is(self._codec):
            self._codec = next((name for name in _FILTERS if self._is(name)), self._codec)
        return self._codec if self._codec != self._first else ""

    def _is(self, codec: str) -> bool:
        try:
            BitStreamFilterContext(_FILTERS[codec], self._stream)
        except (av.FFmpegError, ValueError):
            return False
        return True
