"""Open a camera at a link-local IPv6 address, inside a network namespace that has one.

Arguments: a video, and the zone as the URL has it. Prints the size of the picture of each URL.
"""

import asyncio
import socket
import sys
import threading
from pathlib import Path
from urllib.parse import urlsplit

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.media.source import inspect_source
from streamer.media.urls import parse_source

ADDRESS, INTERFACE = "fe80::1", "lo"


class Forwarder(threading.Thread):
    """Listens at the link-local address, and relays to a port of 127.0.0.1."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        scope = socket.if_nametoindex(INTERFACE)
        self._listener = socket.socket(socket.AF_INET6)
        self._listener.bind((ADDRESS, 0, 0, scope))
        self._listener.listen()
        self._upstream = port
        self.port = self._listener.getsockname()[1]

    def run(self) -> None:
        """Relay until the program ends."""
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._relay, sock=self._listener)
        await server.serve_forever()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answers, requests = await asyncio.open_connection("127.0.0.1", self._upstream)
        await asyncio.gather(_copy(reader, requests), _copy(answers, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


if __name__ == "__main__":
    video, zone = sys.argv[1:]
    with LoopbackCamera(Path(video)) as camera:
        parts = urlsplit(camera.url)
        forwarder = Forwarder(parts.port or 0)
        forwarder.start()
        netloc = f"[{ADDRESS}{zone}]:{forwarder.port}"
        url = parse_source(parts._replace(netloc=netloc).geturl())  # as it is typed
        info = inspect_source(url, timeout=60.0)
        print(f"{info.width}x{info.height}", flush=True)
