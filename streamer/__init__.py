"""NVILA Streamer: attach camera streams and ask what they show, now or in the past.

`Client` and `AsyncClient` talk to a running service over HTTP. The rest of this package is the
service: domain types, Redis keys, sources and sampling, jobs, results, timeline, HTTP API and
command line. The model lives in :mod:`nvila_core`, the long-lived processes in :mod:`workers`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamer.http_client import AsyncClient, Client

__version__ = "0.1.0"

__all__ = ["AsyncClient", "Client", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the clients when they are used: every program imports this package."""
    if name not in ("AsyncClient", "Client"):
        raise AttributeError(f"module 'streamer' has no attribute '{name}'")
    from streamer import http_client

    return getattr(http_client, name)
