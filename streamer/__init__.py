"""NVILA Streamer: attach camera streams and ask what they show, now or in the past.

`Client` and `AsyncClient` talk to a running service over HTTP. The rest of this package is the
service: domain types, Redis keys, sources and sampling, jobs, results, timeline, HTTP API and
command line. The model lives in :mod:`nvila_core`, the long-lived processes in :mod:`workers`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import the clients when they are used: every program imports this package.

    `__init__.pyi` declares them for type checkers.
    """
    if name not in ("AsyncClient", "Client"):
        raise AttributeError(f"module 'streamer' has no attribute '{name}'")
    return getattr(importlib.import_module("streamer.http_client"), name)
