"""A bad cable: a relay of RTSP over TCP that loses or damages what the camera sends."""

import asyncio
import random
import struct
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.support.relay import Relay

_CLOCK_RATE = 90_000


@dataclass
class Faults:
    """The current faults; any thread may change them at any time."""

    lose: float = 0.0
    """Fraction of the RTP packets that are lost."""
    flip: float = 0.0
    """Fraction of the RTP packets in which some bits are flipped."""
    shift: float = 0.0
    """Seconds that the camera's timestamps are off."""
    rate: float = 1.0
    """Speed of the camera's clock: 0 freezes it, 10 lets it run ten times too fast."""
    mute: bool = False
    """Keep connections open, but pass nothing."""
    refuse: bool = False
    """Reset every new connection."""
    lost: int = field(default=0, init=False)
    flipped: int = field(default=0, init=False)


class RtspProxy(Relay):
    """Relay of RTSP over TCP to the camera at `port`, with `faults`."""

    def __init__(self, port: int, seed: int = 1, host: str = "127.0.0.1") -> None:
        super().__init__(port, host=host)
        self.faults = Faults()
        self._random = random.Random(seed)
        self._first_stamps: dict[int, int] = {}  # by the offset of the timestamp in its packet

    def through(self, url: str) -> str:
        """Return `url` with the address of this proxy."""
        return urlsplit(url)._replace(netloc=f"{self.host}:{self.port}").geturl()

    def admits(self) -> bool:
        """Return whether a new connection may pass."""
        return not self.faults.refuse

    async def pause(self) -> None:
        """Wait until data may pass."""
        while self.faults.mute:
            await asyncio.sleep(0.02)

    async def read_answer(self, reader: asyncio.StreamReader) -> bytes:
        """Return the next line of an RTSP answer, the next RTP or RTCP packet in its `$` frame,
        or nothing for a packet that gets lost.
        """
        first = await reader.readexactly(1)
        if first != b"$":
            return first + await reader.readuntil(b"\n")  # a header line; a body holds lines too
        channel, length = struct.unpack(">BH", await reader.readexactly(3))
        packet = bytearray(await reader.readexactly(length))
        faults = self.faults
        if channel % 2 == 0:
            if self._random.random() < faults.lose:
                faults.lost += 1
                return b""
            if self._random.random() < faults.flip and length > 40:
                faults.flipped += 1
                for _ in range(3):
                    packet[self._random.randrange(24, length)] ^= 1 << self._random.randrange(8)
            self._spoil_clock(packet, 4)
        elif len(packet) >= 20 and packet[1] == 200:  # the sender report has the time too
            self._spoil_clock(packet, 16)
        return b"$" + struct.pack(">BH", channel, length) + bytes(packet)

    def _spoil_clock(self, packet: bytearray, at: int) -> None:
        """Change the RTP timestamp at offset `at` of `packet`."""
        (stamp,) = struct.unpack_from(">I", packet, at)
        first = self._first_stamps.setdefault(at, stamp)
        stamp = first + round((stamp - first) * self.faults.rate)
        stamp += round(self.faults.shift * _CLOCK_RATE)
        struct.pack_into(">I", packet, at, stamp % 2**32)
