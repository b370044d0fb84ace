"""NVILA Streamer: attach camera streams, ask what they show, now or before.

This package is the service: domain types, Redis keys, sources and sampling, jobs, results,
timeline, HTTP API, command line and client. The model lives in :mod:`nvila_core`, the long-lived
processes in :mod:`workers`.
"""

__version__ = "0.1.0"
