"""NVILA Streamer: attach camera streams and ask what they show, now or in the past.

This package is the service: domain types, Redis keys, sources and sampling, jobs, results,
timeline, HTTP API, command line and client. The model lives in :mod:`nvila_core`, the long-lived
processes in :mod:`workers`.
"""

__version__ = "0.1.0"
