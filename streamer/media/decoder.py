"""Decode packets to frames, and no more of them than sampling needs."""

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
from streamer.media.timing import StreamTime, to_seconds

_MAX_REORDERED = 17
"""Frames that a decoder may hold: 16 in a full buffer, and the one that it was just given."""


class SparseDecoder:
    """Decodes the packets of one connection, in decoding order.

    Without `sampler`, it decodes all packets. With one, every frame that the sampler may keep is
    decoded completely, and the rest is skipped: packets before a key frame that arrives in time,
    frames that no other frame refers to and, if the sampler wants key frames only, all others.
    `max_pixels` bounds the frames of every codec that the source goes on in; the caller bounds the
    first, `context`.
    """

    def __init__(
        self,
        context: VideoCodecContext,
        time_base: Fraction,
        stream_time: StreamTime,
        *,
        live: bool,
        max_pixels: int,
        sampler: Callable[[], Sampler] | None = None,
        shift: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._context = context
        self._time_base = time_base
        self._stream_time = stream_time
        self._live = live
        self._max_pixels = max_pixels
        self._sampler = sampler
        self._shift = shift
        self._gate: PacketGate[Arrival] = PacketGate(live=live)
        self._first_codec = context.codec.canonical_name
        self.codec = ""
        """Current codec; "" for the one that the source began with."""
        self._undated: list[int] = []  # heap: dts of packets without pts in the decoder
        self._due: float | None = None  # timestamp before which no frame is wanted
        self._flushed = False
        self._restarted_at: float | None = None  # timestamp of the key frame after a flush
        self.key_frames_only = False
        """Whether only key frames are decoded, each alone."""
        self.fed = 0
        """Number of packets given to the decoder."""
        self.corrupt = 0
        """Number of damaged packets; each costs its own frame, not the stream."""

    def decode(self, arrival: Arrival) -> list[VideoFrame]:
        """Decode `arrival`; return the frames that are complete now, in presentation order."""
        images: list[VideoFrame] = []
        if arrival.codec != self.codec:
            images = self._change_codec(arrival.codec)
        for packet in self._admit(arrival):
            images += self._decode(packet)
        self.corrupt += sum(image.is_corrupt for image in images)
        if images and self._restarted_at is not None:
            first = images[0].pts
            if first is not None and first * self._time_base > self._restarted_at + MIN_FRAME_GAP:
                self._gate.distrust_key_frames()  # the frame could not be decoded alone
            self._restarted_at = None
        return images

    def _change_codec(self, codec: str) -> list[VideoFrame]:
        """Continue with another decoder; return the last frames of the previous one."""
        self._gate.drop_held()
        last = self._feed(None)
        context = av.CodecContext.create(codec or self._first_codec, "r")
        assert isinstance(context, VideoCodecContext)
        context.options = {**context.options, "max_pixels": str(self._max_pixels)}
        context.thread_count = self._context.thread_count
        context.thread_type = self._context.thread_type
        self._context, self.codec = context, codec
        self._restarted_at = None
        return last

    def drop_held(self) -> None:
        """Drop the packets that are held back."""
        self._gate.drop_held()

    def _admit(self, arrival: Arrival) -> "list[Packet[Any]]":
        packet = arrival.packet
        if not packet.size:  # the end: held packets extend the recording
            return [*(held.packet for held in self._gate.drop_held()), packet]
        if self._sampler is None:
            return [packet]
        sampler = self._sampler()
        self._due = self._stream_time.timestamp(sampler.due - self._shift())
        self.key_frames_only = sampler.keyframes
        decision = self._gate.admit(
            TimestampedPacket(arrival, self._stamp(packet), packet.is_keyframe, packet.size),
            self._due,
            sampler.slack if self._live else 0.0,
            keyframes=self.key_frames_only,
        )
        if decision.flush:
            self._context.flush_buffers()
            self._undated.clear()
            self._flushed = True
        if self._flushed and decision.packets:
            self._flushed, self._restarted_at = False, self._stamp(decision.packets[0].packet)
        return [admitted.packet for admitted in decision.packets]

    def _stamp(self, packet: "Packet[Any]") -> float | None:
        """Return the presentation time of `packet`, seconds of the source's clock."""
        stamp = packet.pts
        if stamp is None and not self._context.has_b_frames:
            stamp = packet.dts
        return to_seconds(stamp, self._time_base) if stamp is not None else None

    def _decode(self, packet: "Packet[Any]") -> list[VideoFrame]:
        self.fed += 1
        if self.key_frames_only:
            return self._decode_alone(packet)
        if self._due is not None and not self._context.is_hwaccel:
            stamp = self._stamp(packet)
            early = stamp is not None and stamp < self._due
            # skips frames that no other frame refers to, and that are not wanted
            self._context.skip_frame = "NONREF" if early else "DEFAULT"
        return self._feed(packet)

    def _decode_alone(self, packet: "Packet[Any]") -> list[VideoFrame]:
        """Decode a key frame at once: a decoder would wait for the frames after it."""
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
        """Store the decoding time of a packet without a presentation time.

        Frames leave the decoder in presentation order, at the same times at which they were
        decoded: the n-th frame gets the n-th smallest decoding time.
        """
        if packet is None or packet.pts is not None or packet.dts is None:
            return
        if not self._context.has_b_frames:
            packet.pts = packet.dts
            return
        heapq.heappush(self._undated, packet.dts)
        if len(self._undated) > _MAX_REORDERED:  # some frames were not decoded
            heapq.heappop(self._undated)
