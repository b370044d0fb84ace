"""Decide which files and network addresses may be opened.

A user who attaches a stream chooses a URL that this machine then fetches from inside its network.
Cameras of the local network are the purpose of the service. Other services of this machine, and
the metadata services that give out a cloud machine's credentials, must stay out of reach.
"""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from nvila_core.file_kind import MAX_PIXELS
from streamer.errors import ErrorCode, StreamerError
from streamer.media import source_errors
from streamer.media.urls import is_remote, local_source, path_of, redact
from streamer.settings import MAX_LIVE_PIXELS, Settings

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA = frozenset(
    ipaddress.ip_address(address)
    for address in (
        "169.254.169.254",  # most clouds
        "169.254.170.2",  # AWS containers
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google Cloud
        "100.100.100.200",  # Alibaba Cloud
        "168.63.129.16",  # Azure
        "192.0.0.192",  # Oracle Cloud
    )
)
_THIS_NETWORK = ipaddress.ip_network("0.0.0.0/8")  # Linux treats it as this machine
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True)
class AccessPolicy:
    """Rules for the sources that this process may open.

    Attributes:
        dirs: folders (or single files and devices) that may hold local sources; None: any.
        hosts: host names, addresses and networks that http(s) may reach although they are this
            machine, link-local, or a cloud's metadata service.
        verify: whether https requires a trusted certificate.
        max_pixels, max_live_pixels: pixels of a frame of a recording and of a live stream at most.
    """

    dirs: tuple[Path, ...] | None = None
    hosts: tuple[str, ...] = ()
    verify: bool = True
    max_pixels: int = MAX_PIXELS
    max_live_pixels: int = MAX_LIVE_PIXELS

    @classmethod
    def of(cls, settings: Settings, *, remote: bool = False) -> Self:
        """Return the policy of `settings`; `remote`: API requests may only read `allowed_dirs`."""
        return cls(
            dirs=tuple(settings.allowed_dirs) if remote else None,
            hosts=tuple(settings.allowed_hosts),
            verify=settings.https_verify,
            max_pixels=settings.max_pixels,
            max_live_pixels=settings.max_live_pixels,
        )

    def check(self, url: str) -> str:
        """Return `url` (from `parse_source`), with links resolved, if it may be opened.

        Raises StreamerError(STREAM_URL_FORBIDDEN). Host names are only checked when they are
        resolved for a connection: see :meth:`addresses`.
        """
        if is_remote(url):
            parts = urlsplit(url)
            if parts.scheme in {"http", "https"} and (literal := _literal(parts.hostname or "")):
                self._check_address(literal, parts.hostname or "", url)
            return url
        if self.dirs is None:
            return url
        for allowed in self.dirs:
            try:
                path, root = Path(path_of(url)).resolve(), allowed.expanduser().resolve()
            except (OSError, RuntimeError):  # circular links
                break
            if path == root or root in path.parents:
                return local_source(str(path))
        raise StreamerError(
            ErrorCode.STREAM_URL_FORBIDDEN,
            f"{url} may not be read through the API: add its folder to the setting allowed_dirs, "
            "or attach it with the command line.",
        )

    def addresses(self, host: str, port: int, url: str) -> list[str]:
        """Resolve `host` once, and return its addresses if all of them may be connected to.

        Raises StreamerError: STREAM_URL_FORBIDDEN; STREAM_CONNECTION_FAILED for an unknown name.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise source_errors.unknown_host(host) from None
        addresses = list(dict.fromkeys(_with_zone(entry[4]) for entry in found))
        for address in addresses:
            self._check_address(ipaddress.ip_address(address), host, url)
        return addresses

    def _check_address(self, address: IPAddress, host: str, url: str) -> None:
        what = special_use(address)
        if what is None or is_listed(address, host, self.hosts):
            return
        raise StreamerError(
            ErrorCode.STREAM_URL_FORBIDDEN,
            f"{redact(url)} leads to {what}, which http(s) may not reach: to allow it, add {host} "
            "to the setting allowed_hosts.",
        )


def is_listed(address: IPAddress, host: str, hosts: Sequence[str]) -> bool:
    """Return whether `hosts` (names, addresses and networks) has `address`, or `host`, its name."""
    for entry in hosts:
        try:
            if plain_address(address) in ipaddress.ip_network(entry, strict=False):
                return True
        except ValueError:
            if entry.lower() == host.lower():
                return True
    return False


def special_use(address: IPAddress) -> str | None:
    """Describe the special use of `address`; None for an address that any host may have."""
    plain = plain_address(address)
    if plain in _METADATA:
        return "a cloud's metadata service"
    if plain.is_loopback or plain.is_unspecified or plain in _THIS_NETWORK:
        return "this machine itself"
    if plain.is_link_local:
        return "a link-local address"
    if plain.is_multicast or (plain.is_reserved and plain.version == 4):
        return "an address that is not a single host"
    return None


def plain_address(address: IPAddress) -> IPAddress:
    """Return the IPv4 address that an IPv6 address embeds, or the address itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address.scope_id is not None:
        address = ipaddress.IPv6Address(int(address))
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


def _with_zone(address: tuple[Any, ...]) -> str:
    """Return the address of a socket; that of a link includes the zone, which Python sets apart."""
    host = str(address[0])
    scope = address[3] if len(address) > 3 else 0
    return f"{host}%{scope}" if scope and "%" not in host else host


def _literal(host: str) -> IPAddress | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
