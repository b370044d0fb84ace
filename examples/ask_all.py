"""Ask every attached camera the same question at once, over the HTTP API, and print the answers.

    python examples/ask_all.py "Is anybody there?"

Set STREAMER_API_URL and STREAMER_API_KEY for a service on another machine.
"""

import argparse
import asyncio

from streamer import AsyncClient
from streamer.errors import StreamerError

parser = argparse.ArgumentParser()
parser.add_argument("question")
parser.add_argument("--wait", type=float, default=120.0, help="seconds to wait for the answers")
arguments = parser.parse_args()


async def ask(client: AsyncClient, stream: str) -> None:
    """Ask about one camera; one that fails does not keep the others from being asked."""
    try:
        result = await client.ask(arguments.question, stream, wait=arguments.wait)
        print(f"{stream}: {result.text}", flush=True)
    except StreamerError as error:
        print(f"{stream}: {error.code}: {error.message}", flush=True)


async def main() -> None:
    """Ask about all cameras."""
    async with AsyncClient() as client:
        streams = await client.streams()
        await asyncio.gather(*(ask(client, stream.name) for stream in streams))


asyncio.run(main())
