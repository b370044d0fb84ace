"""Relay TCP connections to a server on loopback; subclasses can damage what passes."""

import asyncio
import contextlib
import ssl
import threading
from typing import Self


class Relay:
    """Listen on a free port of `host` and relay every connection to `port` of loopback.

    A subclass may refuse connections (`admits`), change what passes (`read_request`,
    `read_answer`) and let it wait (`pause`). With `context`, TLS ends here.
    """

    def __init__(
        self, port: int, *, context: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.port = 0
        self.host = host
        self.accepted = 0
        """Number of connections that arrived so far."""
        self._upstream = port
        self._context = context
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(lambda *_: None)  # connections break here on purpose
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
        self._ready = threading.Event()

    @property
    def open(self) -> int:
        """Number of connections that are being relayed."""
        return len(self._writers) // 2  # each has two ends

    def readers(self, address: str) -> int:
        """Return the number of connections from an address that are being relayed."""
        ends = [each.get_extra_info("peername") for each in list(self._writers)]
        return sum(end is not None and end[0] == address for end in ends)

    def hang_up(self) -> None:
        """End all connections."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def admits(self) -> bool:
        """Return whether a new connection may pass; it is reset otherwise."""
        return True

    async def pause(self) -> None:
        """Return when the next piece may pass."""

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        """Return the next piece for the server; raise IncompleteReadError at the end."""
        return await read_some(reader)

    async def read_answer(self, reader: asyncio.StreamReader) -> bytes:
        """Return the next piece for the client; raise IncompleteReadError at the end."""
        return await read_some(reader)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(60)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(
            asyncio.start_server(self._serve, self.host, 0, ssl=self._context)
        )
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._abort_all()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    def _abort_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if not self.admits():
            writer.transport.abort()
            return
        try:
            answers, requests = await asyncio.open_connection("127.0.0.1", self._upstream)
        except OSError:
            writer.transport.abort()
            return
        both = {writer, requests}
        self._writers |= both
        relays = [
            asyncio.ensure_future(self._to_server(reader, requests)),
            asyncio.ensure_future(self._to_client(answers, writer)),
        ]
        # no task awaits this one, so that its cancellation ends here
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait(relays, return_when=asyncio.FIRST_COMPLETED)
        self._writers -= both
        for relay in relays:
            relay.cancel()
        for each in both:
            each.close()

    async def _to_server(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await self._pass(await self.read_request(reader), writer)

    async def _to_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                await self._pass(await self.read_answer(reader), writer)

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        await self.pause()
        if writer.transport.is_closing():
            raise ConnectionResetError
        writer.write(data)
        await writer.drain()


async def read_some(reader: asyncio.StreamReader) -> bytes:
    """Return what has arrived; raise IncompleteReadError at the end."""
    data = await reader.read(65536)
    if not data:
        raise asyncio.IncompleteReadError(b"", None)
    return data
