"""Put the packets of a video into fragmented MP4 as they are: nothing is encoded again.

Browsers play the fragments with Media Source Extensions. Each holds one frame. The *initialization
segment* before them says how they are encoded.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av
from av.bitstream import BitStreamFilterContext
from av.codec import CodecContext
from av.container import OutputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

_MOVFLAGS = "empty_moov+default_base_moof+frag_every_frame+skip_trailer"

_TIME_BASE = Fraction(1, 90_000)

_FILTERS = {"h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb", "av1": "null"}
"""By codec: the filter after which a key frame is preceded by its parameter sets, if they are known
from the container alone."""

CODECS = frozenset(_FILTERS)
"""Codecs that are remuxed, as FFmpeg calls them."""

_START = re.compile(rb"\x00\x00\x01")
_SET_KINDS = {"h264": (7, 8), "hevc": (32, 33, 34)}
"""By codec: the kinds of NAL units that are parameter sets."""


@dataclass(frozen=True)
class Fragment:
    """One frame as MP4.

    Attributes:
        data: the boxes `moof` and `mdat`.
        key: whether it can be decoded without the frames before it.
        init: the initialization segment that it needs.
        mime: the media type of the video with its codec, as browsers name it.
    """

    data: bytes
    key: bool
    init: bytes
    mime: str


class Remuxer:
    """Remuxes the packets of a video stream, from the next key frame on.

    Use it in the thread that reads the packets, while their container is open. Times begin at 0
    with the first frame.

    Args:
        max_pixels: of a frame; one that is larger is not remuxed.

    Raises ValueError if the codec is none of `CODECS`, and av.FFmpegError.
    """

    def __init__(self, stream: VideoStream, max_pixels: int) -> None:
        context = stream.codec_context
        self._codec = context.codec.canonical_name
        if self._codec not in CODECS:
            raise ValueError(f"{self._codec} is not remuxed")
        self._decoder = context.name
        self._filter = BitStreamFilterContext(_FILTERS[self._codec], stream)
        self._header = context.extradata or b""
        self._max_pixels = max_pixels
        self._muxer: _Muxer | None = None
        self._sets: tuple[bytes, ...] = ()  # of the newest key frame that had any

    def mux(self, packet: "Packet[Any]") -> list[Fragment]:
        """Return what is complete with `packet`: as a rule the frame before it, because the muxer
        needs the time of the next one. `packet` is not changed. Raises av.FFmpegError.
        """
        fragments: list[Fragment] = []
        for unit in self._filter.filter(_copy(packet)):
            data = bytes(unit)
            if packet.is_keyframe:
                fragments += self._renew(data)
            if self._muxer is not None:
                fragments += self._muxer.write(data, packet)
        return fragments

    def finish(self) -> list[Fragment]:
        """Return the last frame. The next fragments begin with a key frame."""
        muxer, self._muxer = self._muxer, None
        return muxer.finish() if muxer is not None else []

    def _renew(self, key_frame: bytes) -> list[Fragment]:
        """Start a new muxer at the first key frame, and where the encoding changes; return the last
        frame of the old one."""
        sets = _parameter_sets(self._codec, key_frame)
        if self._muxer is not None and sets in ((), self._sets):
            return []
        first = key_frame if sets or self._codec not in _SET_KINDS else self._header + key_frame
        last = self.finish()
        size = self._measure(first)
        if size is not None:
            self._muxer, self._sets = _Muxer(self._codec, *size, first), sets
        return last

    def _measure(self, key_frame: bytes) -> tuple[int, int] | None:
        """Return width and height, in pixels, of a key frame; None if it cannot be decoded."""
        context = cast(VideoCodecContext, CodecContext.create(self._decoder, "r"))
        context.options = {"max_pixels": str(self._max_pixels)}
        context.thread_count = 1
        for packet in (av.Packet(key_frame), None):
            context.decode(packet)
        return (context.width, context.height) if context.width and context.height else None


class _Muxer:
    """Writes frames that share an initialization segment; `first` is the first of them."""

    def __init__(self, codec: str, width: int, height: int, first: bytes) -> None:
        self._pipe = _Pipe()
        self._output: OutputContainer = av.open(
            cast(Any, self._pipe), "w", format="mp4", options={"movflags": _MOVFLAGS}
        )
        self._stream: Stream = self._output.add_mux_stream(
            codec, width=width, height=height, time_base=_TIME_BASE
        )
        self._codec = codec
        self._first: bytes | None = first
        self._held_key: bool | None = None  # of the frame that the output holds; None: none
        self._origin = 0
        self._decoded = -1  # time of the newest frame
        self._init, self._mime = b"", ""

    def write(self, data: bytes, like: "Packet[Any]") -> list[Fragment]:
        """Write a frame with the times of the packet `like`; return the frame before it."""
        packet = av.Packet(data if self._first is None else self._first)
        packet.stream = self._stream
        packet.time_base = _TIME_BASE
        packet.is_keyframe = like.is_keyframe
        packet.pts, packet.dts = self._times(like)
        first, self._first = self._first is not None, None
        self._output.mux(packet)
        written = self._pipe.take()
        if first:
            self._init, self._mime = _initialization(self._codec, written)
            written = b""
        return self._completed(written, like.is_keyframe)

    def finish(self) -> list[Fragment]:
        """Return the last frame."""
        self._output.close()
        return self._completed(self._pipe.take(), None)

    def _completed(self, written: bytes, key: bool | None) -> list[Fragment]:
        held, self._held_key = self._held_key, key
        if held is None or not written:
            return []
        return [Fragment(written, held, self._init, self._mime)]

    def _times(self, packet: "Packet[Any]") -> tuple[int, int]:
        """Return when a frame is shown and decoded: the muxer accepts rising times only."""
        base = packet.time_base or _TIME_BASE
        dts = packet.dts if packet.dts is not None else packet.pts
        if dts is None:
            dts, pts = self._decoded + 1 + self._origin, None
        else:
            dts = round(dts * base / _TIME_BASE)
            pts = None if packet.pts is None else round(packet.pts * base / _TIME_BASE)
        if self._decoded < 0:
            self._origin = dts
        self._decoded = max(dts - self._origin, self._decoded + 1)
        return max(self._decoded, (dts if pts is None else pts) - self._origin), self._decoded


class _Pipe:
    """A file without places, to which the muxer can only append."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """Return what was written since the last call."""
        parts, self._parts = self._parts, []
        return b"".join(parts)


def _copy(packet: "Packet[Any]") -> "Packet[Any]":
    """Return a packet with the data of `packet`, which the decoder may be reading."""
    copied = av.Packet(bytes(packet))
    copied.is_keyframe = packet.is_keyframe
    return copied


def _parameter_sets(codec: str, data: bytes) -> tuple[bytes, ...]:
    """Return the parameter sets in a frame of H.264 or H.265 (Annex B), once each."""
    kinds = _SET_KINDS.get(codec, ())
    found = []
    for unit in _START.split(data)[1:] if kinds else ():
        kind = unit[:1] and ((unit[0] >> 1) & 0x3F if codec == "hevc" else unit[0] & 0x1F)
        if kind in kinds:
            found.append(unit.rstrip(b"\0"))
    return tuple(dict.fromkeys(found))


def _initialization(codec: str, boxes: bytes) -> tuple[bytes, str]:
    """Return an initialization segment, and the media type of what follows it."""
    if codec == "h264":
        config = _content(boxes, b"avcC")
        name = f"avc1.{config[1]:02X}{config[2]:02X}{config[3]:02X}"
    elif codec == "hevc":
        boxes = boxes.replace(b"hev1", b"hvc1")  # the name that Safari plays
        name = _hevc_name(_content(boxes, b"hvcC"))
    else:
        config = _content(boxes, b"av1C")
        depth = 12 if config[2] & 0x20 else 10 if config[2] & 0x40 else 8
        tier = "H" if config[2] & 0x80 else "M"
        name = f"av01.{config[1] >> 5}.{config[1] & 0x1F:02}{tier}.{depth:02}"
    return boxes, f'video/mp4; codecs="{name}"'


def _hevc_name(config: bytes) -> str:
    """Return the name of H.265 by ISO/IEC 14496-15, annex E, from the box `hvcC`."""
    space = ("", "A", "B", "C")[config[1] >> 6]
    tier = "H" if config[1] & 0x20 else "L"
    compatible = int(f"{int.from_bytes(config[2:6]):032b}"[::-1], 2)
    limits = [f"{byte:X}" for byte in config[6:12].rstrip(b"\0")]
    return ".".join(
        ("hvc1", f"{space}{config[1] & 0x1F}", f"{compatible:X}", f"{tier}{config[12]}", *limits)
    )


def _content(boxes: bytes, name: bytes) -> bytes:
    """Return the content of the box `name`. Raises ValueError if there is none."""
    start = boxes.index(name)
    size = int.from_bytes(boxes[start - 4 : start])
    return boxes[start + 4 : start - 4 + size]
