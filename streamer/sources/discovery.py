"""Find the cameras of a private network, and say which of them are attached already."""

import ipaddress
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from urllib.parse import unquote, urlsplit

from pydantic import Field

from streamer.domain.error_info import ErrorInfo
from streamer.domain.record import Record
from streamer.domain.stream import Stream, StreamState
from streamer.errors import ErrorCode, StreamerError
from streamer.media import onvif
from streamer.media.onvif import Details, Reply
from streamer.settings import Settings

MAX_HOSTS = 1024
"""Addresses of one search: a /22 network."""

LISTEN = 3.0
"""Seconds to wait for answers to a probe."""

ASK = 20.0
"""Seconds to ask all found cameras for their streams."""

_AT_ONCE = 16
"""Cameras to ask at the same time."""

_PRIVATE = [
    ipaddress.ip_network(text)
    for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16")
]

_LOST = (StreamState.RECONNECTING, StreamState.FAILED, StreamState.CONNECTING)


class FoundStream(Record):
    """A stream of a camera that was found."""

    name: str = Field(description="what the camera calls it")
    url: str = Field(description="its URL, without user and password")
    codec: str | None = None
    width: int | None = Field(default=None, description="pixels")
    height: int | None = Field(default=None, description="pixels")
    fps: int | None = Field(default=None, description="frames per second at most")


class FoundCamera(Record):
    """A camera that was found."""

    address: str = Field(description="its address now")
    endpoint_reference: str | None = Field(
        default=None, description="its id, the same at every address; attach its streams with it"
    )
    name: str = ""
    manufacturer: str = ""
    model: str = ""
    serial: str = ""
    location: str = ""
    streams: list[FoundStream] = Field(default_factory=list)
    error: ErrorInfo | None = Field(
        default=None, description="why its streams, or some of them, are not known"
    )
    attached: list[str] = Field(
        default_factory=list, description="names of the streams that are attached from it"
    )
    moved: list[str] = Field(
        default_factory=list,
        description="those of them whose URL has another address: attach them again",
    )


class Discovery(Record):
    """What a search has found."""

    cameras: list[FoundCamera]
    hosts: int | None = Field(description="addresses that were asked; null: the whole network")


def find_cameras(
    settings: Settings,
    streams: Sequence[Stream],
    address: str | None = None,
    user: str | None = None,
    password: str | None = None,
) -> Discovery:
    """Search for cameras at `address` (a host or a network such as 192.168.1.0/24).

    Without it, ask the network of each interface by multicast. `user` and `password` log in to the
    cameras: most list their streams only after a login. `streams` are the attached streams.

    Raises StreamerError: INVALID_REQUEST, STREAM_URL_FORBIDDEN for an address that is not private,
    SETTINGS_INVALID without the extra `discover`.
    """
    onvif.require_onvif()
    if address is None:
        hosts = None
        replies = onvif.probe_network(lambda sender: _allowed(sender, settings), LISTEN)
    else:
        hosts = hosts_of(address, settings)
        replies = onvif.probe_hosts(hosts, LISTEN)
        if not replies and len(hosts) == 1:
            # some cameras answer no probe that is for them alone
            replies = [Reply(hosts[0], "", onvif.device_service(hosts[0]))]
    details = _ask_all(replies, user, password, settings.https_verify)
    cameras = []
    for reply, answer in zip(replies, details, strict=True):
        if not reply.endpoint_reference and not answer.reached and not answer.profiles:
            continue  # nothing is there
        cameras.append(_camera(reply, answer, streams))
    cameras.sort(key=lambda camera: ipaddress.ip_address(camera.address))
    return Discovery(cameras=cameras, hosts=None if hosts is None else len(hosts))


def hosts_of(address: str, settings: Settings) -> list[str]:
    """Return the IPv4 addresses that a host name, an address or a network stands for.

    Raises StreamerError: INVALID_REQUEST; STREAM_URL_FORBIDDEN if one is not private.
    """
    text = address.strip()
    try:
        network = ipaddress.IPv4Network(text, strict=False)
    except ValueError:
        network = ipaddress.IPv4Network(_resolved(text))
    if network.num_addresses > MAX_HOSTS:
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            f"{text[:80]} has {network.num_addresses} addresses, more than {MAX_HOSTS}: search in "
            "a part of it, such as a /24 network.",
            "address",
        )
    hosts = [str(host) for host in network.hosts()]
    for host in hosts:
        if not _allowed(host, settings):
            raise StreamerError(
                ErrorCode.STREAM_URL_FORBIDDEN,
                f"{host} is not an address of a private network: cameras are searched for in "
                "those only. Attach a camera elsewhere by its URL.",
                "address",
            )
    return hosts


def lost_cameras(streams: Sequence[Stream]) -> list[Stream]:
    """Return the streams of known cameras that do not answer at the address in the URL."""
    return [
        stream
        for stream in streams
        if stream.endpoint_reference and not stream.paused and stream.state in _LOST
    ]


def find_moved(streams: Sequence[Stream]) -> dict[str, str]:
    """Return the new addresses of cameras whose streams are lost, by the stream's name.

    Asks the 256 addresses around the one that each had. Raises StreamerError as `find_cameras`.
    """
    lost = lost_cameras(streams)
    around: dict[str, None] = {}
    for stream in lost:
        host = ipaddress_of(stream)
        if host is not None and any(host in network for network in _PRIVATE):
            network = ipaddress.IPv4Network(f"{host}/24", strict=False)
            around |= dict.fromkeys(str(each) for each in network.hosts())
    if not around:
        return {}
    onvif.require_onvif()
    addresses = {
        reply.endpoint_reference: reply.address
        for reply in onvif.probe_hosts(list(around)[:MAX_HOSTS], LISTEN)
    }
    found = {}
    for stream in lost:
        address = addresses.get(stream.endpoint_reference or "")
        if address is not None and _is_elsewhere(stream, address):
            found[stream.name] = address
    return found


def ipaddress_of(stream: Stream) -> ipaddress.IPv4Address | None:
    """Return the IPv4 address in a stream's URL; None if that is a name, or none."""
    try:
        return ipaddress.IPv4Address(urlsplit(stream.url).hostname or "")
    except ValueError:
        return None


def same_path(url: str, other: str) -> bool:
    """Return whether two URLs differ at most in user, password, host and port."""
    parts, others = urlsplit(url), urlsplit(other)
    return (parts.scheme, parts.path, parts.query) == (others.scheme, others.path, others.query)


def _is_elsewhere(stream: Stream, address: str) -> bool:
    host = ipaddress_of(stream)
    return host is not None and str(host) != address


def _resolved(name: str) -> str:
    try:
        found = socket.getaddrinfo(name, None, socket.AF_INET, socket.SOCK_DGRAM)
        return str(found[0][4][0])
    except (OSError, UnicodeError):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            # what stands before an @ is a login
            f"'{name.rpartition('@')[2][:80]}' is neither a host, an IPv4 address, nor a network: "
            "write 192.168.1.20 or 192.168.1.0/24.",
            "address",
        ) from None


def _allowed(host: str, settings: Settings) -> bool:
    """Return whether an address is private, and not one that gives out secrets."""
    from streamer.media.access_policy import is_listed, special_use

    address = ipaddress.IPv4Address(host)
    if not any(address in network for network in _PRIVATE):
        return False
    special = special_use(address) is not None and not address.is_loopback
    return not special or is_listed(address, host, settings.allowed_hosts)


def _ask_all(
    replies: Sequence[Reply], user: str | None, password: str | None, verify: bool
) -> list[Details]:
    """Ask every device for its streams, together for at most about ASK seconds."""
    deadline = time.monotonic() + ASK
    pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="onvif")

    def ask(reply: Reply) -> Details:
        if time.monotonic() >= deadline:
            return _late(reply)
        answer = onvif.ask_device(reply.service, user, password, deadline=deadline, verify=verify)
        if answer.reached and not reply.endpoint_reference:
            answer.endpoint_reference = onvif.endpoint_reference_of(
                reply.service, user, password, verify=verify
            )
        return answer

    asked = [pool.submit(ask, reply) for reply in replies]
    wait(asked, timeout=ASK + 1.0)
    pool.shutdown(wait=False, cancel_futures=True)
    return [
        future.result() if future.done() and not future.cancelled() else _late(reply)
        for future, reply in zip(asked, replies, strict=True)
    ]


def _late(reply: Reply) -> Details:
    message = f"The camera at {reply.address} did not answer in time: search at its address alone."
    return Details(error=StreamerError(ErrorCode.STREAM_TIMEOUT, message))


def _camera(reply: Reply, answer: Details, streams: Sequence[Stream]) -> FoundCamera:
    reference = reply.endpoint_reference or answer.endpoint_reference or None
    attached = [s for s in streams if reference is not None and s.endpoint_reference == reference]
    error = answer.error
    return FoundCamera(
        address=reply.address,
        endpoint_reference=reference,
        name=_plain(reply.name),
        manufacturer=_plain(answer.manufacturer),
        model=_plain(answer.model or reply.hardware),
        serial=_plain(answer.serial),
        location=_plain(reply.location),
        streams=[
            FoundStream(
                name=_plain(profile.name),
                url=_plain(profile.url),
                codec=profile.codec,
                width=profile.width,
                height=profile.height,
                fps=profile.fps,
            )
            for profile in answer.profiles
        ],
        error=ErrorInfo(code=error.code, message=error.message) if error is not None else None,
        attached=[stream.name for stream in attached],
        moved=[stream.name for stream in attached if _is_elsewhere(stream, reply.address)],
    )


def _plain(text: str) -> str:
    """Return a device's text without the characters that a terminal cannot show."""
    shown = unquote(text) if "%" in text and "://" not in text else text
    return "".join(each for each in shown if each.isprintable())
