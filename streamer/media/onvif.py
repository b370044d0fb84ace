"""Ask cameras who they are and where their streams are, by ONVIF.

Needs the extra `discover`; everything here that speaks the protocol is the library `onveef`.
"""

import select
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from streamer.errors import ErrorCode, StreamerError
from streamer.media.urls import redact

PORT = 3702
"""UDP port of WS-Discovery."""

GROUP = ("239.255.255.250", PORT)
"""Multicast group that all cameras of a network listen to."""

MAX_REPLIES = 256
"""Cameras of one search."""

MAX_PROFILES = 16
"""Streams of one camera."""

_TIMEOUT = 4.0
"""Seconds to wait for one answer of a camera over HTTP."""

_BATCH, _BATCH_PAUSE = 64, 0.1
"""Hosts that are asked at once, and seconds between: each has to be looked up in the network."""

_TYPES = "dn:NetworkVideoTransmitter"

_MAX_REPLY = 65_535


@dataclass(frozen=True)
class Reply:
    """A device that has answered a probe.

    Attributes:
        address: where the answer came from.
        endpoint_reference: the id of the device, the same at every address; empty if unknown.
        service: URL of its device service, at `address`.
        name, hardware, location: as the device announces them; empty if it does not.
    """

    address: str
    endpoint_reference: str
    service: str
    name: str = ""
    hardware: str = ""
    location: str = ""


@dataclass(frozen=True)
class Profile:
    """A stream of a camera; `url` has no user and password."""

    name: str
    url: str
    codec: str | None = None
    width: int | None = None
    height: int | None = None
    fps: int | None = None


@dataclass
class Details:
    """A camera's answers over HTTP; `error` says why some are missing."""

    manufacturer: str = ""
    model: str = ""
    serial: str = ""
    endpoint_reference: str = ""
    profiles: list[Profile] = field(default_factory=list)
    error: StreamerError | None = None
    reached: bool = True


def require_onvif() -> None:
    """Raise StreamerError(SETTINGS_INVALID) without the extra `discover`."""
    try:
        import onveef  # noqa: F401
    except ImportError:
        raise StreamerError(
            ErrorCode.SETTINGS_INVALID,
            "The search for cameras is not installed: run `pip install "
            "'nvila-streamer[discover]'`.",
        ) from None


def probe_hosts(hosts: Sequence[str], seconds: float) -> list[Reply]:
    """Send a probe to each of `hosts` (IPv4), and return what answers within `seconds`.

    Answers of other hosts are ignored. Raises StreamerError without a network.
    """
    wanted = frozenset(hosts)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        return _replies(
            [udp],
            _batches(udp, [(host, PORT) for host in hosts]),
            seconds,
            lambda sender: sender in wanted,
        )


def probe_network(accept: Callable[[str], bool], seconds: float) -> list[Reply]:
    """Send a probe to the group of all cameras, from every interface of this machine.

    Return what answers within `seconds`, from the addresses that `accept` takes.
    """
    from onveef.wsdiscovery import local_ipv4_addresses

    opened: list[socket.socket] = []
    try:
        for address in local_ipv4_addresses() or ["0.0.0.0"]:
            udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            opened.append(udp)
            udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
            udp.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(address))
        sends = (batch for udp in opened for batch in _batches(udp, [GROUP]))
        return _replies(opened, sends, seconds, accept)
    finally:
        for udp in opened:
            udp.close()


def _batches(
    udp: socket.socket, destinations: Sequence[tuple[str, int]]
) -> Iterator[Callable[[], None]]:
    """Yield what sends one batch of probes. Each probe is sent twice: UDP loses some."""
    from onveef.wsdiscovery import build_probe

    def send(batch: Sequence[tuple[str, int]]) -> None:
        for destination in batch:
            text = build_probe(message_id=f"urn:uuid:{uuid.uuid4()}", types=_TYPES)
            try:
                udp.sendto(text.encode(), destination)
            except OSError:  # no way there: it does not answer
                continue

    for _ in range(2):
        for start in range(0, len(destinations), _BATCH):
            batch = destinations[start : start + _BATCH]
            yield lambda batch=batch: send(batch)  # type: ignore[misc]


def _replies(
    sockets: Sequence[socket.socket],
    sends: Iterator[Callable[[], None]],
    seconds: float,
    accept: Callable[[str], bool],
) -> list[Reply]:
    found: dict[str, Reply] = {}
    deadline: float | None = None
    while deadline is None or time.monotonic() < deadline:
        send = next(sends, None) if deadline is None else None
        if send is not None:
            send()
            pause = _BATCH_PAUSE
        else:
            deadline = deadline or time.monotonic() + seconds
            pause = max(0.0, deadline - time.monotonic())
        readable, _, _ = select.select(sockets, [], [], pause)
        for udp in readable:
            try:
                data, sender = udp.recvfrom(_MAX_REPLY)
            except OSError:  # a host that refuses the port
                continue
            if accept(sender[0]):
                for reply in _parse(data, sender[0]):
                    found[reply.endpoint_reference or reply.address] = reply
        if len(found) >= MAX_REPLIES:
            break
    return list(found.values())[:MAX_REPLIES]


def _parse(data: bytes, sender: str) -> Iterator[Reply]:
    from onveef.wsdiscovery import parse_probe_matches

    try:
        matches = parse_probe_matches(data.decode("utf-8", errors="replace"))
    except Exception:  # whatever a device sends must not end the search
        return
    for match in matches:
        services = [at_address(url, sender) for url in match.xaddrs]
        service = next((url for url in services if url is not None), None)
        if service is not None:
            yield Reply(
                sender,
                match.endpoint_reference[:256],
                service,
                match.name[:200],
                match.hardware[:200],
                match.location[:200],
            )


def at_address(url: str, address: str) -> str | None:
    """Return a device's http(s) URL with the host replaced by `address`, from which it answered.

    Devices often announce an address that they no longer have, and no device may send requests to
    another host. Return None for any other URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme not in ("http", "https"):
        return None
    netloc = f"{address}:{port}" if port else address
    return urlunsplit((parts.scheme, netloc, parts.path, parts.query, ""))


def device_service(address: str) -> str:
    """Return the usual URL of the device service at `address`."""
    return f"http://{address}/onvif/device_service"


def ask_device(
    service: str, user: str | None, password: str | None, *, deadline: float, verify: bool = True
) -> Details:
    """Ask the device at the URL `service` what it is and which streams it has.

    Send the password as a digest only, and no request after `deadline` of the monotonic clock. A
    failure is in the `error` of the answer.
    """
    from onveef import OnvifError

    details = Details()
    address = urlsplit(service).hostname or ""
    try:
        with _client(service, user, password, verify) as device:
            _ask(device, details, deadline)
    except OnvifError as error:
        details.error = _explained(error, address, user)
        details.reached = getattr(error, "code", "") not in ("onvif_transport", "onvif_timeout")
    except Exception as error:  # a device may answer anything
        details.error = _explained(error, address, user)
    return details


def _ask(device: Any, details: Details, deadline: float) -> None:
    information = device.get_device_information()
    details.manufacturer = str(information.get("Manufacturer", ""))[:200]
    details.model = str(information.get("Model", ""))[:200]
    details.serial = str(information.get("SerialNumber", ""))[:200]
    for profile in device.get_profiles()[:MAX_PROFILES]:
        if time.monotonic() >= deadline:
            raise TimeoutError("it answers too slowly")
        url = device.get_stream_uri(profile_token=profile["token"])
        details.profiles.append(_profile(profile, url))


def endpoint_reference_of(
    service: str, user: str | None, password: str | None, *, verify: bool = True
) -> str:
    """Return the id that a device has at every address; empty if it gives none."""
    try:
        with _client(service, user, password, verify) as device:
            return str(device.get_endpoint_reference())[:256]
    except Exception:  # few devices have this call
        return ""


def _client(service: str, user: str | None, password: str | None, verify: bool) -> Any:
    """Return a client of a device; no proxy of the environment leads to a private network."""
    import httpx
    from onveef import OnvifClient

    return OnvifClient(
        service,
        username=user or "",
        password=password or "",
        timeout_s=_TIMEOUT,
        retries=0,
        http_auth="digest",
        transport=httpx.HTTPTransport(verify=verify),
        max_response_bytes=1 << 20,
    )


def _profile(profile: dict[str, Any], url: str) -> Profile:
    encoder = profile.get("video_encoder") or {}
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return Profile(
        name=str(profile.get("name") or profile["token"])[:200],
        url=urlunsplit((parts.scheme, host, parts.path, parts.query, "")),
        codec=str(encoder["encoding"]).lower() if encoder.get("encoding") else None,
        width=_number(encoder.get("width")),
        height=_number(encoder.get("height")),
        fps=_number(encoder.get("fps_limit")),
    )


def _number(value: Any) -> int | None:
    try:
        return int(float(value)) or None
    except (TypeError, ValueError, OverflowError):
        return None


def _explained(error: Exception, address: str, user: str | None) -> StreamerError:
    code = getattr(error, "code", "")
    if code == "onvif_unauthorized":
        if not user:
            message = (
                f"The camera at {address} requires a user and a password: give --user (`user`)."
            )
        else:
            message = (
                f"The camera at {address} refused user and password: check them; many cameras have "
                "users of their own for ONVIF."
            )
        return StreamerError(ErrorCode.STREAM_AUTH_FAILED, message)
    reason = redact(str(error)).split("\n")[0].rstrip(".")[:200] or type(error).__name__
    if code == "onvif_timeout" or isinstance(error, TimeoutError):
        return StreamerError(
            ErrorCode.STREAM_TIMEOUT, f"The camera at {address} did not answer in time ({reason})."
        )
    return StreamerError(
        ErrorCode.STREAM_CONNECTION_FAILED,
        f"The camera at {address} did not list its streams ({reason}): take the URL from its "
        "manual, and check it with `streamer probe`.",
    )
