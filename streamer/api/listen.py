"""Open the API's listening socket."""

import os
import socket

from streamer.errors import ErrorCode, StreamerError
from streamer.settings import Settings

MAX_UNREAD_SECONDS = 60
"""Seconds after which the system drops a connection whose other end takes no data."""


def listen(settings: Settings) -> socket.socket:
    """Open a listening socket at the API's address.

    Raises StreamerError(SETTINGS_INVALID) if the address is in use or not of this machine.
    """
    host, port = settings.api_host, settings.api_port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else "no such host"
        raise StreamerError(
            ErrorCode.SETTINGS_INVALID,
            f"The API cannot listen on {host}:{port} ({reason}): choose another --port or --host.",
        ) from None
    # Connections inherit it. Otherwise every answer but the first on a connection waits for the
    # caller's delayed acknowledgement, 44 ms: asyncio does not set it for a socket of this kind.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A closed connection whose caller reads nothing would stay until all of it was read.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, MAX_UNREAD_SECONDS * 1000)
    return listener
