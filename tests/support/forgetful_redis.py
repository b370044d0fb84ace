"""A line to a Redis that loses the answer to one command, after the server has executed it."""

import asyncio

from tests.support.relay import Relay, read_some


class ForgetfulLine(Relay):
    """Relays to a Redis; the connection breaks instead of delivering an answer."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.lost = 0
        """How many answers were lost."""
        self._marker = b""
        self._due = False

    def lose_answer_to(self, marker: bytes) -> None:
        """Lose the answer to the next request that contains `marker`."""
        self._marker = marker

    async def read_request(self, reader: asyncio.StreamReader) -> bytes:
        data = await read_some(reader)
        if self._marker and self._marker in data:
            self._marker, self._due = b"", True
        return data

    async def read_answer(self, reader: asyncio.StreamReader) -> bytes:
        data = await read_some(reader)
        if self._due:
            self._due = False
            self.lost += 1
            raise asyncio.IncompleteReadError(b"", None)
        return data
