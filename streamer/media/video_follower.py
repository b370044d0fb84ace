"""Follow a video that continues as another stream of its container."""

from typing import Any

from av.packet import Packet
from av.video.stream import VideoStream

_MAX_SILENCE = 2.0
"""Seconds of another video, without a packet of the current one, before it is followed."""

_MIN_TAIL = 1.0
"""Seconds of another video at the end; less is only the interleaving of the multiplex."""

_MAX_HELD = 1024
"""Packets of another video to hold."""


class VideoFollower:
    """Chooses the packets of one video, in MPEG-TS that may hold several.

    A recorder that restarts, or a broadcast that changes its programme, continues under another
    PID. The packets of other videos are held until the current one has been silent for a while.

    Args:
        current: the video that is read first.
    """

    def __init__(self, current: VideoStream) -> None:
        self._current = current.index
        self._held: list[Packet[Any]] = []
        self._reached = -1  # byte position of the newest packet passed on
        self.codec = ""
        """Codec of the current video; "" for the first one."""

    def follow(self, packet: "Packet[Any]") -> "list[Packet[Any]]":
        """Take the next packet of any video. Return the packets to decode now, in order."""
        # FFmpeg returns the last frames of a PID only with its next data or at the end: too late
        if packet.pos is not None and packet.pos < self._reached:
            return []
        if packet.stream.index == self._current:
            self._held.clear()
            self._reached = packet.pos or self._reached
            return [packet]
        if self._held and self._held[0].stream.index != packet.stream.index:
            # several videos besides the current one: follow the first of them
            return []
        self._held.append(packet)
        if len(self._held) > _MAX_HELD or self._span() > _MAX_SILENCE:
            return self._change()
        return []

    def finish(self) -> "list[Packet[Any]]":
        """Return the packets left to decode at the end of the source."""
        return self._change() if self._span() > _MIN_TAIL else []

    def _span(self) -> float:
        """Return the seconds of video that are held."""
        stamps = (
            [p.dts for p in (self._held[0], self._held[-1]) if p.dts is not None]
            if self._held
            else []
        )
        base = self._held[0].time_base if self._held else None
        if len(stamps) < 2 or base is None:
            return 0.0
        return abs(float((stamps[1] - stamps[0]) * base))

    def _change(self) -> "list[Packet[Any]]":
        held, self._held = self._held, []
        self._reached = held[-1].pos or self._reached
        self._current = held[0].stream.index
        stream: Any = held[0].stream
        self.codec = stream.codec_context.codec.canonical_name if stream.codec_context else ""
        return held
