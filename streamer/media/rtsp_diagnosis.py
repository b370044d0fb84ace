"""Ask an RTSP server why a source cannot be opened: FFmpeg does not pass the reason on."""

import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import av

from streamer.domain.stream import Transport
from streamer.errors import ErrorCode, StreamerError
from streamer.media import source_errors, tls
from streamer.media.access_policy import AccessPolicy
from streamer.media.rtsp_session import (
    NotRtspError,
    RtspResponse,
    RtspSession,
    read_description,
)
from streamer.media.urls import TLS_SCHEMES, port_of, redact

MAX_REDIRECTS = 5

RTSP_SCHEMES = frozenset({"rtsp", "rtsps"})

_MAX_SECONDS = 3.0
_MIN_SECONDS = 0.5

_REMEMBERED_SECONDS = 60.0
"""Seconds for which a finding explains the same failure, so that the server is not asked at each
attempt: cameras lock out clients that log in too often."""

_MAX_REMEMBERED = 256
_UNSUPPORTED_TRANSPORT = 461

_Opened = TypeVar("_Opened")


@dataclass(frozen=True)
class Finding:
    """What an RTSP server says about a URL.

    Attributes:
        url: where redirects lead; the URL itself without any.
        error: why the server does not send its video; None if it seems to.
    """

    url: str
    error: StreamerError | None = None


class _Memory:
    """The latest findings by URL and kind of failure."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._findings: OrderedDict[tuple[str, ...], tuple[float, Finding]] = OrderedDict()

    def recall(self, key: tuple[str, ...]) -> Finding | None:
        """Return a finding that is recent enough."""
        with self._lock:
            at, finding = self._findings.get(key, (float("-inf"), None))
        return finding if time.monotonic() - at < _REMEMBERED_SECONDS else None

    def note(self, key: tuple[str, ...], finding: Finding) -> None:
        """Keep a finding."""
        with self._lock:
            self._findings[key] = time.monotonic(), finding
            self._findings.move_to_end(key)
            while len(self._findings) > _MAX_REMEMBERED:
                self._findings.popitem(last=False)


_memory = _Memory()


def explained(
    open_url: Callable[[str], _Opened],
    url: str,
    *,
    transport: Transport,
    access: AccessPolicy,
    timeout: float,
) -> _Opened:
    """Return `open_url(url)`. If FFmpeg fails there, ask the server why, and follow its redirects.

    The server is asked within `timeout` seconds in all, or a little later. Raises StreamerError
    with the reason of the server; the exception of FFmpeg if the server gives none.
    """
    began = time.monotonic()
    try:
        return open_url(url)
    except (av.FFmpegError, OSError) as failure:
        known = TimeoutError, ConnectionRefusedError, av.HTTPNotFoundError
        if urlsplit(url).scheme not in RTSP_SCHEMES or isinstance(failure, known):
            raise
        key = (url, transport, type(failure).__name__)
        finding = _memory.recall(key)
        if finding is None:
            left = timeout - (time.monotonic() - began)
            limit = max(_MIN_SECONDS, min(_MAX_SECONDS, left))
            finding = diagnose(url, transport=transport, access=access, limit=limit)
            _memory.note(key, finding)
        if finding.error is not None:
            # Copied: its traceback would keep what it refers to alive.
            raise StreamerError(finding.error.code, finding.error.message) from None
        if finding.url == url:
            raise
    return open_url(finding.url)


def diagnose(url: str, *, transport: Transport, access: AccessPolicy, limit: float) -> Finding:
    """Start a session at `url` as FFmpeg would, within `limit` seconds, and end it at once."""
    deadline = time.monotonic() + limit
    asked = url
    try:
        for _ in range(MAX_REDIRECTS + 1):
            with RtspSession(_connect(url, deadline - time.monotonic()), url) as session:
                answer = request_description(session, url, deadline - time.monotonic())
                target = redirect(session, answer, access)
                if target is None:
                    with tls.time_limit(session.connection, deadline - time.monotonic()):
                        return Finding(url, _why_no_video(session, answer, url, transport))
                url = target
        return Finding(asked, source_errors.too_many_redirects(asked))
    except StreamerError as error:
        return Finding(url, error)
    except TimeoutError:
        return Finding(url, source_errors.timed_out(url, limit))
    except ssl.SSLError:
        return Finding(url, source_errors.no_tls(url))
    except (OSError, NotRtspError, ValueError):
        return Finding(url)  # FFmpeg's own failure says more


def request_description(session: RtspSession, url: str, limit: float) -> RtspResponse:
    """Request the session description, within `limit` seconds.

    Returns a success or a redirect. Raises StreamerError with the reason otherwise.
    """
    try:
        with tls.time_limit(session.connection, max(0.05, limit)):
            answer = session.describe()
    except NotRtspError as error:
        speaks = "TLS" if source_errors.wants_encryption(url) else error.speaks
        raise source_errors.not_rtsp(url, speaks) from None
    except TimeoutError:
        raise source_errors.timed_out(url, limit) from None
    except OSError:
        encrypted = source_errors.wants_encryption(url)
        raise (source_errors.wants_tls if encrypted else source_errors.closed)(url) from None
    if answer.status in (401, 403, 404):
        if answer.status == 401 and not session.can_try:
            raise source_errors.unknown_login(url, session.logins)
        raise source_errors.refused(url, answer.status, asked=session.auth)
    if session.auth and not session.can_log_in():
        raise source_errors.unknown_login(url, session.logins)
    if not answer.ok and not 300 <= answer.status < 400:
        raise source_errors.refused(url, answer.status)
    return answer


def redirect(session: RtspSession, answer: RtspResponse, access: AccessPolicy) -> str | None:
    """Return the URL to which `answer` redirects, with the user and password of the session's;
    None if it does not.

    Raises StreamerError(STREAM_URL_FORBIDDEN) for another scheme than rtsp and rtsps.
    """
    if not 300 <= answer.status < 400:
        return None
    location = (answer.headers.get("Location") or "").strip()
    if not location:
        raise source_errors.refused(session.url, answer.status)
    target = urljoin(session.url, location)
    parts = urlsplit(target)
    if parts.scheme not in RTSP_SCHEMES or not parts.hostname:
        raise StreamerError(
            ErrorCode.STREAM_URL_FORBIDDEN,
            f"{redact(session.url)} redirects to a source that may not be opened "
            f"({redact(location.partition(':')[0][:20])}): an RTSP redirect may only lead to "
            "rtsp:// and rtsps://.",
        )
    if "@" not in parts.netloc and session.login:
        target = parts._replace(netloc=f"{session.login}@{parts.netloc}").geturl()
    return access.check(target)


def _connect(url: str, limit: float) -> socket.socket:
    parts = urlsplit(url)
    limit = max(0.05, limit)
    connection = socket.create_connection((parts.hostname or "", port_of(url)), limit)
    if parts.scheme in TLS_SCHEMES:
        return tls.shake_hands(connection, tls.unchecked(), within=limit, host=parts.hostname)
    return connection


def _why_no_video(
    session: RtspSession, answer: RtspResponse, url: str, transport: Transport
) -> StreamerError | None:
    description = read_description(answer, session.url)
    track = description.video
    if track is None:
        return source_errors.no_video(url) if description.tracks else None
    if url.startswith("rtsps:"):
        transport = "tcp"
    status = 0
    for wanted in ("tcp", "udp") if transport == "auto" else (transport,):
        status = session.setup(description, track, wanted, play=True).status
        if status < 300:
            return None
        if status != _UNSUPPORTED_TRANSPORT:
            return source_errors.refused(url, status, asked=session.auth)
    return source_errors.no_transport(url, transport)
