"""Start an RTSP session without FFmpeg, which does not report the request that failed.

RFC 2326 (RTSP 1.0), RFC 7616 (Digest), RFC 4566 (SDP).
"""

import base64
import hashlib
import http.client
import re
import secrets
import socket
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import parse_http_list, parse_keqv_list

_MAX_LINE = 8192
_MAX_BODY = 1 << 20
_UNAUTHORIZED = 401
_AGENT = "nvila-streamer"


@dataclass(frozen=True)
class RtspResponse:
    """Response of a server to one request; header names are case-insensitive."""

    status: int
    reason: str
    headers: http.client.HTTPMessage
    body: str

    @property
    def ok(self) -> bool:
        """Whether the status is a success."""
        return 200 <= self.status < 300


@dataclass
class Track:
    """One media track of a session description."""

    kind: str
    codec: str | None = None
    control: str | None = None


@dataclass(frozen=True)
class Description:
    """Session description: its tracks, and the URL to which their controls are relative."""

    tracks: list[Track] = field(default_factory=list)
    base: str = ""

    @property
    def video(self) -> Track | None:
        """The first video track."""
        return next((track for track in self.tracks if track.kind == "video"), None)


class NotRtspError(Exception):
    """The port does not speak RTSP. `speaks` names its protocol, if known."""

    def __init__(self, speaks: str | None = None) -> None:
        super().__init__(speaks or "not RTSP")
        self.speaks = speaks


class RtspSession:
    """An RTSP session over `connection`, which it closes. It logs in if the server requires it.

    `url` may contain user and password, percent-encoded; they are never sent in the request line.
    Methods raise NotRtspError, and OSError (TimeoutError) from the socket.
    """

    def __init__(self, connection: socket.socket, url: str) -> None:
        parts = urlsplit(url)
        authority = without_zone(parts.netloc.rpartition("@")[2])
        self.url = urlunsplit((parts.scheme, authority, parts.path, parts.query, ""))
        self.auth: str | None = None
        """`Basic` or `Digest`, after the server has required it."""
        self.login = parts.netloc.rpartition("@")[0]
        """User and password as they stand in the URL; empty without."""
        self.server: str | None = None
        """Name of the server software, after its first response."""
        self._user = unquote(parts.username or "")
        self._password = unquote(parts.password or "")
        self._has_user = parts.username is not None
        self._challenge: dict[str, str] = {}
        self._offers: list[tuple[str, dict[str, str]]] = []
        self._sequence = self._nonce_count = 0
        self._session: str | None = None
        self.connection = connection
        self._input = connection.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self._input.close()
        self.connection.close()

    def options(self) -> RtspResponse:
        """Request the methods. Some servers require a login for this, others do not answer."""
        return self._ask("OPTIONS", self.url)

    def describe(self) -> RtspResponse:
        """Request the session description: SDP in `body`."""
        return self._ask("DESCRIBE", self.url, Accept="application/sdp")

    def setup(
        self, description: Description, track: Track, transport: str, *, play: bool = False
    ) -> RtspResponse:
        """Request `track` over `tcp` or `udp`; with `play`, its data as well. On success, tear the
        session down at once. Returns the response to the last request before."""
        wanted = {
            "tcp": "RTP/AVP/TCP;unicast;interleaved=0-1",
            "udp": "RTP/AVP;unicast;client_port=50000-50001",
        }
        control = track.control or ""
        # not urljoin: a base with a query (`...?channel=1/`) is common, and treated as a folder
        address = control if "://" in control else f"{description.base}/{control}"
        answer = self._ask("SETUP", address, Transport=wanted[transport])
        if answer.ok and (session := answer.headers.get("Session")):
            self._session = session.partition(";")[0].strip()
            if play:
                answer = self._ask("PLAY", description.base or self.url, Range="npt=0.000-")
            self._ask("TEARDOWN", self.url)
        return answer

    def can_log_in(self) -> bool:
        """Return whether FFmpeg supports the login method that the server requires.

        FFmpeg prefers Digest, takes the last of several Digest offers, and only knows MD5.
        """
        digests = [offer for kind, offer in self._offers if kind == "digest"]
        if not digests:
            return self.auth in {None, "Basic"}
        return digests[-1].get("algorithm", "MD5").upper() in {"MD5", "MD5-SESS"}

    @property
    def can_try(self) -> bool:
        """Whether one of the login methods that the server offers is known here."""
        return not self._offers or any(_preference(*offer) is not None for offer in self._offers)

    @property
    def logins(self) -> list[str]:
        """The login methods that the server offers, such as `Digest SHA-256`, in its order."""
        return [
            f"Digest {offer.get('algorithm', 'MD5')}" if kind == "digest" else kind.capitalize()
            for kind, offer in self._offers
        ]

    def _ask(self, method: str, address: str, **headers: str) -> RtspResponse:
        answer = self._send(method, address, headers)
        if answer.status == _UNAUTHORIZED and self._read_challenge(answer) and self._has_user:
            answer = self._send(method, address, headers)
        return answer

    def _send(self, method: str, address: str, headers: dict[str, str]) -> RtspResponse:
        self._sequence += 1
        lines = [f"{method} {address} RTSP/1.0", f"CSeq: {self._sequence}", f"User-Agent: {_AGENT}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if self._session is not None:
            lines.append(f"Session: {self._session}")
        if self.auth is not None and self._has_user:
            lines.append(f"Authorization: {self._authorization(method, address)}")
        self.connection.sendall("\r\n".join([*lines, "", ""]).encode())
        return self._receive()

    def _receive(self) -> RtspResponse:
        while (first := self._input.read(1)) == b"$":  # a packet of the stream, between responses
            header = self._input.read(3)
            self._input.read(int.from_bytes(header[1:], "big"))
        line = (first + self._input.readline(_MAX_LINE)).decode("latin-1")
        protocol, _, rest = line.strip().partition(" ")
        code, _, reason = rest.partition(" ")
        if not protocol.startswith("RTSP/") or not code.isdecimal():
            if not line:
                raise ConnectionResetError
            raise NotRtspError("HTTP" if protocol.startswith("HTTP/") else None)
        try:
            headers = http.client.parse_headers(self._input)
            length = min(int(headers.get("Content-Length", "0")), _MAX_BODY)
        except (http.client.HTTPException, ValueError):
            raise NotRtspError from None
        body = self._input.read(max(0, length)).decode("utf-8", "replace")
        self.server = headers.get("Server") or self.server
        return RtspResponse(int(code), reason, headers, body)

    def _read_challenge(self, answer: RtspResponse) -> bool:
        """Choose a login method; return False if there is nothing new to try."""
        offers = [_parse_offer(o) for o in answer.headers.get_all("WWW-Authenticate") or []]
        before = self.auth
        chosen = min(
            (offer for offer in offers if _preference(*offer) is not None),
            key=lambda offer: _preference(*offer) or 0,
            default=None,
        )
        if chosen is None:
            self._offers = offers
            self.auth = self.auth or (offers[0][0].capitalize() if offers else None)
            return False
        self._offers = offers
        self.auth, self._challenge = chosen[0].capitalize(), chosen[1]
        self._nonce_count = 0
        return before is None or self._challenge.get("stale", "").lower() == "true"

    def _authorization(self, method: str, address: str) -> str:
        if self.auth == "Basic":
            pair = f"{self._user}:{self._password}".encode()
            return "Basic " + base64.b64encode(pair).decode()
        given = self._challenge
        algorithm = given.get("algorithm", "MD5")
        hashed = hashlib.sha256 if algorithm.upper().startswith("SHA-256") else hashlib.md5

        def digest(*parts: str) -> str:
            return hashed(":".join(parts).encode()).hexdigest()

        realm, nonce = given.get("realm", ""), given.get("nonce", "")
        secret = digest(self._user, realm, self._password)
        client_nonce = secrets.token_hex(8)
        if algorithm.lower().endswith("-sess"):
            secret = digest(secret, nonce, client_nonce)
        fields = {"username": self._user, "realm": realm, "nonce": nonce, "uri": address}
        rest = ""
        if "auth" in given.get("qop", "").replace(" ", "").split(","):
            self._nonce_count += 1
            count = f"{self._nonce_count:08x}"
            response = digest(secret, nonce, count, client_nonce, "auth", digest(method, address))
            rest = f", qop=auth, nc={count}"
            fields["cnonce"] = client_nonce
        else:
            response = digest(secret, nonce, digest(method, address))
        fields["response"] = response
        if "opaque" in given:
            fields["opaque"] = given["opaque"]
        if "algorithm" in given:
            rest += f", algorithm={algorithm}"
        quoted = (f'{name}="{_quote(value)}"' for name, value in fields.items())
        return "Digest " + ", ".join(quoted) + rest


def read_description(answer: RtspResponse, url: str) -> Description:
    """Parse the session description of a DESCRIBE response."""
    tracks: list[Track] = []
    base = answer.headers.get("Content-Base") or answer.headers.get("Content-Location") or url
    for line in answer.body.splitlines():
        name, _, value = line.strip().partition("=")
        if name == "m":
            tracks.append(Track(value.split(" ")[0]))
        elif name == "a" and tracks:
            key, _, rest = value.partition(":")
            if key == "control":
                tracks[-1].control = rest.strip()
            elif key == "rtpmap" and tracks[-1].codec is None:
                tracks[-1].codec = rest.partition(" ")[2].partition("/")[0] or None
    return Description(tracks, base.strip().rstrip("/"))


def without_zone(authority: str) -> str:
    """Return `authority` without the zone of an IPv6 address, which is of no use to the server."""
    return re.sub(r"%[^]]*(?=\])", "", authority)


def _parse_offer(text: str) -> tuple[str, dict[str, str]]:
    kind, _, parameters = text.strip().partition(" ")
    pairs = [pair for pair in parse_http_list(parameters) if "=" in pair]
    return kind.lower(), parse_keqv_list(pairs)


def _preference(kind: str, offer: dict[str, str]) -> int | None:
    """Return the rank of an offered login, best first; None if it is unknown here."""
    if kind == "basic":
        return 2
    if kind != "digest":
        return None
    algorithm = offer.get("algorithm", "MD5").upper().removesuffix("-SESS")
    return {"MD5": 0, "SHA-256": 1}.get(algorithm)


def _quote(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
