"""Run the API with uvicorn for `streamer serve`."""

import contextlib
import signal
from collections.abc import Iterator

import uvicorn

from streamer.api.app import create_app
from streamer.api.listen import listen
from streamer.api.live.socket import MAX_MESSAGE
from streamer.api_keys import require_keys
from streamer.errors import StreamerError
from streamer.file_pages import release_when_idle
from streamer.logging_setup import configure_logging, log_ready
from streamer.redis_client.connections import log_lacks
from streamer.redis_client.record_version import join_records
from streamer.service import Service
from streamer.settings import Settings
from streamer.tracing import end_tracing, start_tracing

_GRACE = 2
"""Seconds that running requests have to finish when the server stops."""


class Server(uvicorn.Server):
    """Uvicorn server that stops with exit code 0 on SIGINT, SIGTERM or SIGHUP."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle the signals while the server runs."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        old = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


def run_server(settings: Settings) -> None:
    """Serve the API until a signal stops it.

    Raises StreamerError: SETTINGS_INVALID if the address is in use or not allowed without keys,
    REDIS_UNAVAILABLE.
    """
    configure_logging(settings.log_level)
    start_tracing(settings, "api")
    listener = listen(settings)
    try:
        require_keys(settings)
        client = Service(settings, patient=True)
    except StreamerError:
        listener.close()
        raise
    join_records(client.connections.main)
    log_lacks(client.connections)
    config = uvicorn.Config(
        create_app(client, watch_events=True),
        log_config=None,
        access_log=False,  # query strings are private to users
        log_level="warning",
        timeout_graceful_shutdown=_GRACE,
        server_header=False,
        ws_max_size=MAX_MESSAGE,
        ws_per_message_deflate=False,  # pictures do not shrink
    )
    host = f"[{settings.api_host}]" if ":" in settings.api_host else settings.api_host
    url = f"http://{host}:{listener.getsockname()[1]}"
    # The socket listens already, so a program that reads this line can connect.
    log_ready(url=url)
    release_when_idle()
    try:
        Server(config).run(sockets=[listener])
    finally:
        end_tracing()
