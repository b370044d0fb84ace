"""Decide where webhooks may be sent: not into the network that the service is in."""

import ipaddress
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from streamer.errors import ErrorCode, StreamerError
from streamer.limits import MAX_WEBHOOK_URL
from streamer.media.access_policy import IPAddress, is_listed, plain_address, special_use
from streamer.settings import Settings


@dataclass(frozen=True)
class WebhookAddresses:
    """Rules for the addresses of webhooks.

    Attributes:
        hosts: names, addresses and networks that are allowed although they are private.
    """

    hosts: tuple[str, ...] = ()

    @classmethod
    def of(cls, settings: Settings) -> "WebhookAddresses":
        """Return the rules of `settings`."""
        return cls(tuple(settings.webhook_hosts))

    def check(self, url: str) -> str:
        """Return `url` if webhooks may be sent there: its name is looked up.

        Raises StreamerError: INVALID_REQUEST, WEBHOOK_URL_FORBIDDEN.
        """
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if len(url) > MAX_WEBHOOK_URL or parts.scheme not in {"http", "https"} or not host:
            raise _invalid(
                f"write http:// or https://, a host and a path, {MAX_WEBHOOK_URL} characters"
            )
        if parts.username is not None or parts.fragment or not url.isprintable() or " " in url:
            raise _invalid("leave out user, password, fragment and spaces")
        self.resolve(host, port or (443 if parts.scheme == "https" else 80))
        return url

    def resolve(self, host: str, port: int) -> list[str]:
        """Look `host` up once, and return its addresses if all of them may be connected to.

        Raises StreamerError: WEBHOOK_URL_FORBIDDEN; INVALID_REQUEST for an unknown name.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise _invalid(f"no address is known for {host[:253]}") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        for address in addresses:
            self._check_address(ipaddress.ip_address(address), host)
        return addresses

    def _check_address(self, address: IPAddress, host: str) -> None:
        what = special_use(address)
        if what is None and not plain_address(address).is_global:
            what = "a private network"
        if what is None or is_listed(address, host, self.hosts):
            return
        raise StreamerError(
            ErrorCode.WEBHOOK_URL_FORBIDDEN,
            f"{host} is {what}, where webhooks may not be sent: to allow it, add {host} to the "
            "setting webhook_hosts.",
        )


def _invalid(advice: str) -> StreamerError:
    return StreamerError(
        ErrorCode.INVALID_REQUEST, f"This is not the address of a webhook: {advice}.", "url"
    )
