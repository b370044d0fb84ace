"""Where the API may listen: loopback only, unless callers need a key."""

import ipaddress
import os
import socket

from streamer.errors import ErrorCode, StreamerError
from streamer.settings import Settings


def is_loopback(host: str) -> bool:
    """Whether `host`, a name or an address, is this machine and nothing else."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(settings: Settings) -> socket.socket:
    """A listening socket at the API's address.

    Raises StreamerError(SETTINGS_INVALID) when the address is taken, or open to others while
    there are no keys.
    """
    host, port = settings.api_host, settings.api_port
    if not settings.api_keys and not is_loopback(host):
        raise StreamerError(
            ErrorCode.SETTINGS_INVALID,
            f"Without keys the API may listen on 127.0.0.1 only, not on {host}: "
            "set STREAMER_API_KEYS, or leave --host out.",
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
