"""Find the parameter sets (SPS) of H.264 and H.265, without which no frame can be decoded."""

import re
from typing import Any

from av.packet import Packet
from av.video.stream import VideoStream

_START = re.compile(rb"\x00\x00\x01(.)", re.DOTALL)
_H264_SPS = 7
_HEVC_SPS = 33


def are_missing(stream: VideoStream) -> bool:
    """Return whether the description of a stream that needs them has none."""
    context = stream.codec_context
    if context.codec.canonical_name not in {"h264", "hevc"}:
        return False
    return not (context.extradata or context.width)


def contained(packet: "Packet[Any]") -> bool:
    """Return whether a packet of H.264 or H.265 (Annex B) contains an SPS."""
    hevc = packet.stream.codec_context.codec.canonical_name == "hevc"
    for match in _START.finditer(bytes(packet)):
        kind = (match[1][0] >> 1) & 0x3F if hevc else match[1][0] & 0x1F
        if kind == (_HEVC_SPS if hevc else _H264_SPS):
            return True
    return False
