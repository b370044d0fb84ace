"""A bad cable: relays RTSP over TCP to a camera, and loses or damages what the camera sends."""

import asyncio
import contextlib
import random
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urlsplit

_CLOCK_RATE = 90_000


@dataclass
class Faults:
    """What is wrong now; may be changed from any thread at any time."""

    lose: float = 0.0
    """Part of the RTP packets that never arrive."""
    flip: float = 0.0
    """Part of the RTP packets of which some bits are turned over."""
    shift: float = 0.0
    """Seconds that the camera's timestamps are off."""
    mute: bool = False
    """Connections stay open, nothing passes."""
    refuse: bool = False
    """Whoever connects is hung up on at once."""
    lost: int = field(default=0, init=False)
    flipped: int = field(default=0, init=False)


class RtspProxy:
    """Listens on a loopback port of its own and relays to `port`, with `faults`."""

    def __init__(self, port: int, seed: int = 1) -> None:
        self.faults = Faults()
        self.port = 0
        self.accepted = 0
        self._upstream = port
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, name="rtsp-proxy", daemon=True)
        self._ready = threading.Event()

    def through(self, url: str) -> str:
        """The address `url`, by way of this proxy."""
        return urlsplit(url)._replace(netloc=f"127.0.0.1:{self.port}").geturl()

    def hang_up(self) -> None:
        """End all connections."""
        self._loop.call_soon_threadsafe(self._close_all)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, "127.0.0.1", self.port)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._close_all()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _close_all(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.faults.refuse:
            writer.transport.abort()
            return
        try:
            from_camera, to_camera = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, to_camera}
        self._writers |= both
        relays = [
            asyncio.ensure_future(self._relay(reader, to_camera, _whole)),
            asyncio.ensure_future(self._relay(from_camera, writer, self._damaged)),
        ]
        try:
            await asyncio.wait(relays, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the proxy ends: nobody waits for this task
            pass
        finally:
            self._writers -= both
            for relay in relays:
                relay.cancel()
            for each in both:
                each.transport.abort()

    async def _relay(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        read: Callable[[asyncio.StreamReader], Awaitable[bytes]],
    ) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                data = await read(reader)
                while self.faults.mute:
                    await asyncio.sleep(0.02)
                if writer.transport.is_closing():
                    return
                writer.write(data)
                await writer.drain()

    async def _damaged(self, reader: asyncio.StreamReader) -> bytes:
        """The next RTSP answer, or the next RTP or RTCP packet in its `$` frame, or nothing."""
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
            _add(packet, 4, faults.shift)
        elif len(packet) >= 20 and packet[1] == 200:  # the sender report tells the time too
            _add(packet, 16, faults.shift)
        return b"$" + struct.pack(">BH", channel, length) + bytes(packet)


def _add(packet: bytearray, at: int, seconds: float) -> None:
    (stamp,) = struct.unpack_from(">I", packet, at)
    struct.pack_into(">I", packet, at, (stamp + round(seconds * _CLOCK_RATE)) % 2**32)


async def _whole(reader: asyncio.StreamReader) -> bytes:
    data = await reader.read(65536)
    if not data:
        raise asyncio.IncompleteReadError(b"", None)
    return data
