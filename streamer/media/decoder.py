"""From packets to pictures, without decoding more than sampling needs."""

import heapq
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import av
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame

from streamer.media.packet_gate import MIN_FRAME_GAP, PacketGate, TimestampedPacket
from streamer.media.packet_reader import Arrival
from streamer.media.sampler import Sampler
from streamer.media.timing import StreamTime

_MAX_REORDERED = 17
"""Pictures that a decoder may hold: the 16 of a full buffer, and the one that it was just given."""


class SparseDecoder:
    """Decodes the packets of one connection, which it takes in decoding order.

    Without `sampler` all of them. With one, what it may keep is sure to come out, whole; what is
    not needed for that is skipped: packets in front of a key frame that comes in time, pictures
    that no other one refers to, and, if it wants key frames only, everything else.
    """

    def __init__(
        self,
        context: VideoCodecContext,
        time_base: Fraction,
        stream_time: StreamTime,
        *,
        live: bool,
        sampler: Callable[[], Sampler] | None = None,
        shift: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._context = context
        self._time_base = time_base
        self._stream_time = stream_time
        self._live = live
        self._sampler = sampler
        self._shift = shift
        self._gate: PacketGate[Arrival] = PacketGate(live=live)
        self._first_codec = context.codec.canonical_name
        self.codec = ""
        """What it decodes by now, "" while that is what the source began with."""
        self._undated: list[int] = []  # heap: dts of packets without pts in the decoder
        self._due: float | None = None  # timestamp before which no picture is wanted
        self._cut = False
        self._cut_at: float | None = None  # timestamp of the key frame after a cut
        self.alone = False
        """Whether only key frames are decoded, each by itself."""
        self.fed = 0
        """Packets that were given to the decoder."""
        self.corrupt = 0
        """Packets that were damaged: each costs its own picture, not the stream."""

    def decode(self, arrival: Arrival) -> list[VideoFrame]:
        """The pictures that come out now that `arrival` has come, in the order to show them."""
        images: list[VideoFrame] = []
        if arrival.codec != self.codec:
            images = self._change_codec(arrival.codec)
        for packet in self._admit(arrival):
            images += self._decode(packet)
        self.corrupt += sum(image.is_corrupt for image in images)
        if images and self._cut_at is not None:
            first = images[0].pts
            if first is not None and first * self._time_base > self._cut_at + MIN_FRAME_GAP:
                self._gate.distrust()  # what was called a key frame could not be decoded by itself
            self._cut_at = None
        return images

    def _change_codec(self, codec: str) -> list[VideoFrame]:
        """Go on with another decoder; the last pictures of the one before."""
        self._gate.forget()
        last = self._feed(None)
        context = av.CodecContext.create(codec or self._first_codec, "r")
        assert isinstance(context, VideoCodecContext)
        context.thread_count = self._context.thread_count
        context.thread_type = self._context.thread_type
        self._context, self.codec = context, codec
        self._cut_at = None
        return last

    def forget(self) -> None:
        """Let go of the packets that are held."""
        self._gate.forget()

    def _admit(self, arrival: Arrival) -> "list[Packet[Any]]":
        packet = arrival.packet
        if not packet.size:  # the end: what is held may tell how long the recording is
            return [*(held.packet for held in self._gate.forget()), packet]
        if self._sampler is None:
            return [packet]
        sampler = self._sampler()
        self._due = self._stream_time.timestamp(sampler.due - self._shift())
        self.alone = sampler.keyframes
        decision = self._gate.admit(
            TimestampedPacket(arrival, self._stamp(packet), packet.is_keyframe, packet.size),
            self._due,
            sampler.slack if self._live else 0.0,
            keyframes=self.alone,
        )
        if decision.cut:
            self._context.flush_buffers()
            self._undated.clear()
            self._cut = True
        if self._cut and decision.packets:
            self._cut, self._cut_at = False, self._stamp(decision.packets[0].packet)
        return [admitted.packet for admitted in decision.packets]

    def _stamp(self, packet: "Packet[Any]") -> float | None:
        """When the picture of `packet` is to be shown, seconds of the source's own clock."""
        stamp = packet.pts
        if stamp is None and not self._context.has_b_frames:
            stamp = packet.dts
        return float(stamp * self._time_base) if stamp is not None else None

    def _decode(self, packet: "Packet[Any]") -> list[VideoFrame]:
        self.fed += 1
        if self.alone:
            return self._decode_alone(packet)
        if self._due is not None and not self._context.is_hwaccel:
            stamp = self._stamp(packet)
            early = stamp is not None and stamp < self._due
            # pictures that no other one refers to, and that nobody will keep
            self._context.skip_frame = "NONREF" if early else "DEFAULT"
        return self._feed(packet)

    def _decode_alone(self, packet: "Packet[Any]") -> list[VideoFrame]:
        """A key frame at once: a decoder would keep it back until it has seen those after it."""
        if not packet.size:
            return []
        self._context.skip_frame = "DEFAULT"
        images = [*self._feed(packet), *self._feed(None)]
        self._context.flush_buffers()
        return images

    def _feed(self, packet: "Packet[Any] | None") -> list[VideoFrame]:
        self._note_undated(packet)
        try:
            images = self._context.decode(packet)
        except av.EOFError:
            return []
        except (av.FFmpegError, ValueError):
            self.corrupt += 1
            return []
        for image in images:
            if image.pts is None and self._undated:
                image.pts = heapq.heappop(self._undated)
        return images

    def _note_undated(self, packet: "Packet[Any] | None") -> None:
        """Remember the decoding time of a packet that has no presentation time.

        Pictures come out in the order in which they are shown, at the same times at which they
        were decoded: the n-th picture gets the n-th smallest decoding time.
        """
        if packet is None or packet.pts is not None or packet.dts is None:
            return
        if not self._context.has_b_frames:
            packet.pts = packet.dts
            return
        heapq.heappush(self._undated, packet.dts)
        if len(self._undated) > _MAX_REORDERED:  # some pictures did not come out
            heapq.heappop(self._undated)
