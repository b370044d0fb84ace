"""The listening socket of the API."""

import asyncio
import socket

from streamer.api.listen import listen
from streamer.settings import Settings


def test_answers_are_sent_at_once(settings: Settings) -> None:
    """Otherwise each one waits for the caller's delayed acknowledgement."""

    async def serve() -> int:
        options: asyncio.Queue[int] = asyncio.Queue()

        async def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            await options.put(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        listener = listen(settings.model_copy(update={"api_port": 0}))
        port = listener.getsockname()[1]
        async with await asyncio.start_server(accepted, sock=listener):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            found = await options.get()
            writer.close()
            return found

    assert asyncio.run(serve()) != 0
