"""Reads packets in a thread of its own, so that a source that hangs stops nobody else.

FFmpeg blocks inside `open` and `read`, and cannot be interrupted from outside without PyAV's
callback, which takes the GIL at every socket poll. So the thread owns the container: whoever waits
gives up when it likes, and the thread closes what it opened once FFmpeg's own time-out frees it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import av
from av.container import InputContainer
from av.packet import Packet
from av.stream import Discard
from av.video.stream import VideoStream

from streamer.errors import StreamerError
from streamer.media import failures
from streamer.media.urls import SCHEMES, forbidden, is_device

MAX_PACKETS = 1024
MAX_BYTES = 32 * 2**20

_RTSP = {"rtsp_transport": "tcp", "allowed_media_types": "video"}
_PROTOCOLS = {
    "rtsp": "rtp,srtp,udp,tcp,tls,crypto,http,https,httpproxy",
    "rtmp": "rtmp,rtmps,rtmpt,rtmpts,ffrtmpcrypt,ffrtmphttp,tcp,tls,crypto,http,https",
    "http": "http,https,httpproxy,tcp,tls,crypto,data",
    "file": "file,crypto,data",
}


@dataclass(frozen=True)
class Arrival:
    """A packet and the wall clock at which it came; the last one of a source is empty."""

    packet: "Packet[Any]"
    time: float


def open_arguments(url: str, *, live: bool, timeout: float) -> dict[str, Any]:
    """Arguments of `av.open` for `url`; `timeout` bounds FFmpeg's socket calls, seconds."""
    scheme = url.partition("://")[0].lower() if failures.is_remote(url) else ""
    if scheme and scheme not in SCHEMES:
        raise forbidden(url)
    microseconds = str(round(timeout * 1_000_000))
    options = {"protocol_whitelist": _PROTOCOLS[(scheme or "file").removesuffix("s")]}
    if live:
        # 0.5 s to the first picture instead of 2.8 s; three pictures tell the frame rate
        options |= {"analyzeduration": "500000", "fpsprobesize": "3"}
    if scheme in {"rtsp", "rtsps"}:
        options |= _RTSP | {"timeout": microseconds}
    elif scheme in {"rtmp", "rtmps"}:
        options |= {"rw_timeout": microseconds}  # here `timeout` means: listen
    elif scheme in {"http", "https"}:
        options |= {"timeout": microseconds, "rw_timeout": microseconds}
        if not live:
            options |= {"reconnect": "1", "reconnect_delay_max": "5"}
    if is_device(url):
        return {"file": url, "format": "v4l2"}
    # `file:` keeps FFmpeg from reading a name with a colon as a protocol.
    return {"file": url if scheme else f"file:{url}", "options": options}


class PacketReader:
    """Opens `url` and queues its video packets.

    A recording waits when the queue is full. A live source that is not read fast enough loses
    the oldest packets, up to the next key frame; `dropped` counts them.
    """

    def __init__(
        self,
        url: str,
        *,
        live: bool,
        open_timeout: float,
        read_timeout: float,
        start: float = 0.0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._url = url
        self._live = live
        self._open_timeout = open_timeout
        self._read_timeout = read_timeout
        self._start = start
        self._wall = wall
        self._change = threading.Condition()
        self._queue: deque[Arrival] = deque()
        self._bytes = 0
        self._need_key = False
        self._ended = False
        self._closed = False
        self._error: StreamerError | None = None
        self.container: InputContainer | None = None
        self.stream: VideoStream | None = None
        self.packets = 0
        self.bytes = 0
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="packet-reader", daemon=True)

    def start(self) -> None:
        """Begin to open, in the background."""
        self._thread.start()

    def wait_open(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds until it is open. Raises StreamerError when it cannot be."""
        with self._change:
            self._change.wait_for(lambda: self.stream or self._error, timeout)
            if self.stream is None and self._error is not None:
                raise self._error
            return self.stream is not None

    def get(self, timeout: float) -> Arrival | None:
        """The next packet; None when none came within `timeout` seconds, or at the end.

        Raises StreamerError when the source failed, after the packets that came before.
        """
        with self._change:
            if not self._queue and not self._ended:
                self._change.wait(timeout)
            if not self._queue:
                if self._error is not None:
                    raise self._error
                return None
            arrival = self._queue.popleft()
            self._bytes -= arrival.packet.size
            if not self._live and len(self._queue) == MAX_PACKETS // 2:
                self._change.notify_all()
            return arrival

    @property
    def ended(self) -> bool:
        """Whether the end was reached and every packet was taken."""
        with self._change:
            return self._ended and not self._queue

    def close(self, wait: float = 0.0) -> None:
        """Let go of the source; its thread ends as soon as FFmpeg returns. Never blocks longer
        than `wait` seconds. No packet may be decoded afterwards."""
        with self._change:
            self._closed = True
            self._queue.clear()
            self._change.notify_all()
        if wait and self._thread.ident is not None:
            self._thread.join(wait)

    def _run(self) -> None:
        began = time.monotonic()
        try:
            container = self._open()
        except Exception as error:
            self._end(
                failures.from_exception(
                    error,
                    self._url,
                    waited=time.monotonic() - began,
                    timeout=self._open_timeout,
                )
            )
            return
        try:
            with container:
                self._read(container)
        finally:
            self.container = self.stream = None

    def _open(self) -> InputContainer:
        arguments = open_arguments(
            self._url, live=self._live, timeout=min(self._open_timeout, self._read_timeout)
        )
        return av.open(mode="r", **arguments)

    def _read(self, container: InputContainer) -> None:
        error: StreamerError | None = None
        try:
            stream = self._choose(container)
            if self._start > 0:
                self._seek(container)
            with self._change:
                self.container, self.stream = container, stream
                self._change.notify_all()
            for packet in container.demux(stream):
                if not self._put(Arrival(packet, self._wall())):
                    return
        except Exception as failure:  # whatever it is, somebody waits to be told
            error = failures.from_exception(failure, self._url, timeout=self._read_timeout)
        self._end(error)
        with self._change:  # queued packets borrow from the container: it must outlive them
            self._change.wait_for(lambda: self._closed)

    def _choose(self, container: InputContainer) -> VideoStream:
        videos = [
            stream
            for stream in container.streams.video
            if not stream.disposition & 0x400  # the cover of a sound file (attached_pic)
        ]
        if not videos or container.format.name == "tty":  # FFmpeg draws text files as terminals
            raise failures.no_video(self._url)
        chosen = max(videos, key=lambda s: (s.codec_context is not None, s is videos[0]))
        if chosen.codec_context is None:
            raise failures.cannot_decode(self._url, None)
        for stream in container.streams:
            if stream is not chosen:
                stream.discard = Discard.all
        return chosen

    def _seek(self, container: InputContainer) -> None:
        origin = container.start_time or 0
        try:
            container.seek(origin + round(self._start * av.time_base))
        except (av.FFmpegError, OSError):
            return  # not seekable: it is read from the beginning

    def _put(self, arrival: Arrival) -> bool:
        packet = arrival.packet
        with self._change:
            if not self._live:
                self._change.wait_for(lambda: self._closed or not self._full())
            elif self._full():
                self.dropped += len(self._queue)
                self._queue.clear()
                self._bytes = 0
                self._need_key = True
            if self._closed:
                return False
            if packet.size:
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

    def _full(self) -> bool:
        return len(self._queue) >= MAX_PACKETS or self._bytes >= MAX_BYTES

    def _end(self, error: StreamerError | None) -> None:
        with self._change:
            self._error = error
            self._ended = True
            self._change.notify_all()
