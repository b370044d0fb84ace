"""`streamer serve`: uvicorn with our rules of who may listen where."""

import contextlib
import json
import logging
import signal
import sys
from collections.abc import Iterator

import uvicorn

from streamer.api.app import create_app
from streamer.api.listen import listen
from streamer.client import Client
from streamer.errors import StreamerError
from streamer.media.urls import redact
from streamer.settings import Settings

_GRACE = 2
"""Seconds that requests under way have when the server is told to stop."""


class _Redacted(logging.Formatter):
    """Masks the passwords in what is logged, tracebacks too."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class Server(uvicorn.Server):
    """Stops cleanly, with exit code 0, when SIGINT, SIGTERM or SIGHUP comes."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """While serving, signals ask to stop."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        old = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def run(settings: Settings) -> None:
    """Serve until told to stop.

    Raises StreamerError: SETTINGS_INVALID when the address is taken or may not be used without
    keys, REDIS_UNAVAILABLE.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Redacted(logging.BASIC_FORMAT))
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper())
    listener = listen(settings)
    try:
        client = Client(settings)
    except StreamerError:
        listener.close()
        raise
    config = uvicorn.Config(
        create_app(client),
        log_config=None,
        access_log=False,  # query strings are the users' business
        log_level="warning",
        timeout_graceful_shutdown=_GRACE,
        server_header=False,
    )
    host = f"[{settings.api_host}]" if ":" in settings.api_host else settings.api_host
    url = f"http://{host}:{listener.getsockname()[1]}"
    # The socket listens already: whoever reads this line can connect.
    print(json.dumps({"event": "ready", "url": url}), file=sys.stderr, flush=True)
    Server(config).run(sockets=[listener])
