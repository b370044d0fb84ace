"""Open the API's listening socket: on loopback only, unless API keys are set."""

import ipaddress
import os
import socket

from streamer.errors import ErrorCode, StreamerError
from streamer.settings import Settings


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, can only be this machine."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(settings: Settings) -> socket.socket:
    """Open a listening socket at the API's address.

    Raises StreamerError(SETTINGS_INVALID) if the address is in use, or if other machines could
    reach it although no API keys are set.
    """
    host, port = settings.api_host, settings.api_port
    if not settings.api_keys and not is_loopback(host):
        raise StreamerError(
            ErrorCode.SETTINGS_INVALID,
            f"Without API keys the API listens on 127.0.0.1 only, not on {host}: "
            "set STREAMER_API_KEYS, or omit --host.",
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else "no such host"
        raise StreamerError(
            ErrorCode.SETTINGS_INVALID,
            f"The API cannot listen on {host}:{port} ({reason}): choose another --port or --host.",
        ) from None
