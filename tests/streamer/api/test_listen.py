"""The listening socket of the API."""

import asyncio
import contextlib
import select
import socket

import pytest

from streamer.api import listen as listening
from streamer.settings import Settings


def test_answers_are_sent_at_once(settings: Settings) -> None:
    """Otherwise each one waits for the caller's delayed acknowledgement."""

    async def serve() -> int:
        options: asyncio.Queue[int] = asyncio.Queue()

        async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            await options.put(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listening.listen(settings.model_copy(update={"api_port": 0}))
        port = listener.getsockname()[1]
        async with await asyncio.start_server(accepted, sock=listener):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            found = await options.get()
            writer.close()
            return found

    assert asyncio.run(serve()) != 0


def test_a_connection_whose_other_end_reads_nothing_is_dropped(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "MAX_UNREAD_SECONDS", 1)
    with (
        listening.listen(settings.model_copy(update={"api_port": 0})) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as connection,
    ):
        # given a connection that is full
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while connection.send(b"x" * (1 << 20)):
                pass
        # then the system ends it
        broken = select.poll()
        broken.register(connection, select.POLLERR)
        assert broken.poll(60_000)
