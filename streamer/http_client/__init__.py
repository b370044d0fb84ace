"""Clients of a running service over HTTP: `Client` for threads, `AsyncClient` for asyncio.

They need no model, no Redis and no video library. Both send what `calls.py` describes.
"""

from streamer.http_client.async_client import AsyncClient
from streamer.http_client.client import Client

__all__ = ["AsyncClient", "Client"]
