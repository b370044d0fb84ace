"""Clients of a running service over HTTP: `HttpClient` for threads, `AsyncHttpClient` for asyncio.

They need no model, no Redis and no video library. Both send what `calls.py` describes.
"""

from streamer.http_client.async_client import AsyncHttpClient
from streamer.http_client.client import HttpClient

__all__ = ["AsyncHttpClient", "HttpClient"]
