"""Probe a source: what it is, or which step towards its first frame fails."""

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from streamer.domain.error_info import ErrorInfo
from streamer.domain.stream import Transport
from streamer.errors import ErrorCode, StreamerError
from streamer.media import rtsp_diagnosis, source_errors, tls
from streamer.media.access_policy import AccessPolicy
from streamer.media.hardware import Hardware
from streamer.media.liveness import is_live_source
from streamer.media.probe import advice
from streamer.media.probe.report import ProbeReport, ProbeStep
from streamer.media.probe.stream_stats import StreamStats
from streamer.media.rtsp_session import (
    Description,
    NotRtspError,
    RtspResponse,
    RtspSession,
    read_description,
)
from streamer.media.source import DecodedFrame, Source
from streamer.media.urls import (
    TLS_SCHEMES,
    guess_live,
    is_remote,
    parse_source,
    port_of,
    redact,
    split_secret,
)

MAX_PROBE_SECONDS = 13.5
"""Seconds; with start and end of the program, 15 in total."""

MAX_STEP_SECONDS = 3.0
"""Seconds to resolve a name, to connect, or to get one response."""

MAX_OPEN_SECONDS = 8.0
"""Seconds within which a source that responds has to send data."""

WATCH_SECONDS = 5.0
"""Seconds to watch a live source, if two key frames arrive in that time."""

_MAX_READ_SECONDS = 2.0
"""Seconds to read a recording."""

StepListener = Callable[[str, ProbeStep | None], None]
"""Is called with the name of each step: when it begins, and with its outcome when it has ended."""

_MARGIN = 0.75
_RTSP = rtsp_diagnosis.RTSP_SCHEMES


class _FailedError(Exception):
    """A step failed, so that no later step can succeed."""

    def __init__(self, error: StreamerError, step: str) -> None:
        super().__init__(step)
        self.error = error
        self.step = step


def probe(
    source: str,
    *,
    transport: Transport = "auto",
    hwaccel: Hardware = "none",
    access: AccessPolicy | None = None,
    live: bool | None = None,
    watch: float = WATCH_SECONDS,
    limit: float = MAX_PROBE_SECONDS,
    on_step: StepListener = lambda name, step: None,
) -> ProbeReport:
    """Try `source` step by step. If frames arrive, watch it for `watch` seconds and two key frames.

    `on_step` is called with each step. Without `live`, opening the source shows whether it is
    live. Takes at most `limit` seconds. The report describes what is wrong with the source. Raises
    StreamerError (INVALID_REQUEST, STREAM_URL_FORBIDDEN) for an invalid or forbidden address.
    """
    shown, url = split_secret(parse_source(source))
    report = ProbeReport(url=shown, live=guess_live(url) if live is None else live)
    prober = _Prober(
        report, url, transport, hwaccel, access or AccessPolicy(), watch, limit, on_step
    )
    return prober.run(live)


class _Prober:
    def __init__(
        self,
        report: ProbeReport,
        url: str,
        transport: Transport,
        hwaccel: Hardware,
        access: AccessPolicy,
        watch: float,
        limit: float,
        on_step: StepListener,
    ) -> None:
        self._report = report
        self._url = url
        # FFmpeg uses TCP for encrypted RTSP in any case
        self._transport: Transport = "tcp" if url.startswith("rtsps:") else transport
        self._hwaccel = hwaccel
        self._access = access
        self._for = watch
        self._on_step = on_step
        self._began = time.monotonic()
        self._deadline = self._began + limit - _MARGIN
        self._parts = urlsplit(url)
        self._packets = 0  # received, although no frame was decoded

    def run(self, live: bool | None) -> ProbeReport:
        report = self._report
        try:
            if is_remote(self._url):
                self._check_network()
            report.live = is_live_source(self._url, live, access=self._access, timeout=self._left())
            self._check_frames()
            report.ok = True
        except _FailedError as failed:
            error = failed.error
            report.error = ErrorInfo(code=error.code, message=error.message)
            report.advice = advice.after_failure(
                report, failed.step, self._url, self._neighbour(), silent=not self._packets
            )
        else:
            report.advice = advice.after_success(report)
        report.seconds = time.monotonic() - self._began
        return report

    def _left(self, most: float = MAX_STEP_SECONDS) -> float:
        return max(0.05, min(most, self._deadline - time.monotonic()))

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[ProbeStep]:
        step = ProbeStep(name=name, ok=False, ms=0.0)
        began = time.monotonic()
        self._on_step(name, None)
        try:
            yield step
            step.ok = True
        except StreamerError as error:
            step.detail = error.message
            raise _FailedError(error, name) from None
        finally:
            step.ms = (time.monotonic() - began) * 1000
            self._ended(step)

    def _ended(self, step: ProbeStep) -> None:
        self._report.steps.append(step)
        self._on_step(step.name, step)

    # The network and the RTSP session

    def _check_network(self) -> None:
        for _ in range(rtsp_diagnosis.MAX_REDIRECTS + 1):
            target = self._check_server()
            if target is None:
                return
            self._url, self._parts = target, urlsplit(target)
            if self._parts.scheme == "rtsps":
                self._transport = "tcp"
        with self._step("redirect"):
            raise source_errors.too_many_redirects(self._report.url)

    def _check_server(self) -> str | None:
        """Take the steps to the server's answer. Return where it redirects; None if it does not."""
        host = self._parts.hostname or ""
        port = port_of(self._url)
        with self._step("name") as step:
            addresses = _resolve(host, port, self._left())
            if self._parts.scheme in {"http", "https"}:
                self._access.addresses(host, port, self._url)
            known = ", ".join(dict.fromkeys(str(entry[4][0]) for entry in addresses))
            step.detail = known if known == host else f"{host} is {known}"
        with self._step("connect") as step:
            connection = self._connect(addresses, port)
            step.detail = f"port {port} is open"
        with contextlib.closing(connection):
            if self._parts.scheme in TLS_SCHEMES:
                with self._step("encrypt") as step:
                    encrypted = self._encrypt(connection, host)
                    connection = encrypted
                    step.detail = encrypted.version() or ""
            if self._parts.scheme in _RTSP:
                with RtspSession(connection, self._url) as session:
                    return self._talk(session)
        return None

    def _connect(self, addresses: list[Any], port: int) -> socket.socket:
        problem: OSError = TimeoutError()
        until = time.monotonic() + self._left(MAX_STEP_SECONDS)
        for family, kind, protocol, _, address in addresses:
            connection = socket.socket(family, kind, protocol)
            connection.settimeout(max(0.05, until - time.monotonic()))
            try:
                connection.connect(address)
            except OSError as error:
                connection.close()
                problem = error
            else:
                connection.settimeout(self._left())
                return connection
        shown = self._report.url
        if isinstance(problem, ConnectionRefusedError):
            raise source_errors.nothing_listens(self._url)
        if isinstance(problem, TimeoutError):
            raise StreamerError(
                ErrorCode.STREAM_TIMEOUT,
                f"Nothing responds at port {port} of {shown}: check that the camera is on, "
                "that the address is correct and that no firewall blocks it.",
            )
        raise StreamerError(
            ErrorCode.STREAM_CONNECTION_FAILED,
            f"{shown} cannot be reached: check the address and the network.",
        )

    def _encrypt(self, connection: socket.socket, host: str) -> ssl.SSLSocket:
        verify = self._parts.scheme == "https" and self._access.verify
        context = tls.trusting(verify)
        try:
            return tls.shake_hands(connection, context, within=self._left(), host=host)
        except ssl.SSLCertVerificationError as error:
            raise source_errors.untrusted(self._url, error) from None
        except OSError:
            raise source_errors.no_tls(self._url) from None

    def _talk(self, session: RtspSession) -> str | None:
        answer = self._describe(session)
        if not answer.ok:
            with self._step("redirect") as step:
                target = rtsp_diagnosis.redirect(session, answer, self._access)
                step.detail = f"to {redact(target or '')}"
            return target
        description = read_description(answer, session.url)
        if description.tracks and description.video is None:
            with self._step("description"):
                raise source_errors.no_video(self._url)
        with contextlib.suppress(OSError, NotRtspError):  # FFmpeg decides whether it works
            self._set_up(session, description)
        return None

    def _describe(self, session: RtspSession) -> RtspResponse:
        with self._step("describe") as step:
            try:
                answer = rtsp_diagnosis.request_description(session, self._url, self._left())
            finally:
                self._report.server, self._report.auth = session.server, session.auth
            if not answer.ok:
                step.detail = f"status {answer.status} {answer.reason}"
                return answer
            login = f", {session.auth} login accepted" if session.auth else ", no login required"
            tracks = read_description(answer, session.url).tracks
            media = ", ".join(f"{t.kind} {t.codec or ''}".strip() for t in tracks)
            step.detail = f"{media or 'no media listed'}{login}"
        return answer

    def _set_up(self, session: RtspSession, description: Description) -> None:
        track = description.video
        if track is None:
            return
        wanted = ["tcp", "udp"] if self._transport == "auto" else [self._transport]
        for transport in wanted:
            began = time.monotonic()
            with tls.time_limit(session.connection, self._left()):
                answer = session.setup(description, track, transport)
            step = ProbeStep(
                name="set up",
                ok=answer.ok,
                ms=(time.monotonic() - began) * 1000,
                detail=transport if answer.ok else f"{transport}: {answer.status} {answer.reason}",
            )
            self._ended(step)
            if answer.ok:
                self._transport = "udp" if transport == "udp" else "tcp"
                return

    # Frames

    def _check_frames(self) -> None:
        source = Source(
            self._url,
            live=self._report.live,
            open_timeout=round(self._left(MAX_OPEN_SECONDS), 1),
            read_timeout=round(self._left(MAX_OPEN_SECONDS), 1),
            stopping=lambda: time.monotonic() >= self._deadline,
            hwaccel=self._hwaccel,
            access=self._access,
            **self._transport_option(),
        )
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            with self._step("open") as step:
                try:
                    stack.enter_context(source)
                except StreamerError as error:
                    if error.code is ErrorCode.CANCELLED:
                        error = source_errors.timed_out(self._url, round(time.monotonic() - began))
                    raise error from None
                info = source.info
                step.detail = " ".join(part for part in (info.codec, info.format) if part)
            self._note_info(source)
            frames = iter(source)
            with self._step("first picture") as step:
                first = self._first(source, frames, began)
                step.detail = f"{first.image.width}x{first.image.height}"
            self._report.first_frame_ms = (time.monotonic() - began) * 1000
            self._watch(source, first, frames)

    def _transport_option(self) -> dict[str, Any]:
        if self._parts.scheme not in _RTSP:
            return {}
        transport = self._transport
        if transport == "auto" and all(step.ok for step in self._report.steps):
            transport = "tcp"
        self._report.transport = transport
        return {"transport": transport}

    def _note_info(self, source: Source) -> None:
        report, info = self._report, source.info
        report.format, report.codec, report.claimed_fps = info.format, info.codec, info.fps
        report.duration, report.profile = info.duration, info.profile
        report.width, report.height = info.width or None, info.height or None

    def _first(self, source: Source, frames: Iterator[DecodedFrame], began: float) -> DecodedFrame:
        frame = next(frames, None)
        if frame is not None:
            return frame
        waited = time.monotonic() - began
        self._packets = source.packets
        if not self._packets:
            raise source_errors.timed_out(self._url, round(waited))
        if source.lacks_parameter_sets:
            raise source_errors.no_parameter_sets(self._url, source.info.codec)
        if source.corrupt:
            raise source_errors.cannot_decode(self._url, source.info.codec)
        raise source_errors.no_key_frame(self._url, waited)

    def _watch(self, source: Source, first: DecodedFrame, frames: Iterator[DecodedFrame]) -> None:
        stats = StreamStats()
        live = self._report.live
        began = time.monotonic()
        start = source.bytes
        until = self._deadline if live else min(self._deadline, began + _MAX_READ_SECONDS)
        frame: DecodedFrame | None = first
        # An error after the first frame does not matter: the source has proved to work.
        with contextlib.suppress(StreamerError):
            while frame is not None:
                now = time.monotonic()
                key = bool(frame.image.key_frame)
                stats.add(frame.pts, now, key=key, decode_ms=frame.decode_ms)
                if now >= until or (live and now - began >= self._for and stats.key_frames >= 2):
                    break
                frame = next(frames, None)
        self._note(source, first, stats, source.bytes - start, time.monotonic() - began)

    def _note(
        self, source: Source, first: DecodedFrame, stats: StreamStats, received: int, watched: float
    ) -> None:
        report = self._report
        report.pixel_format = first.image.format.name
        report.interlaced = bool(first.image.interlaced_frame)
        report.width, report.height = first.image.width, first.image.height
        report.frames, report.damaged = stats.frames, source.corrupt
        report.fps, report.decode_ms = stats.fps, stats.decode_ms
        report.gop_frames, report.gop_seconds = stats.gop_frames, stats.gop_seconds
        if report.live:
            report.clock_drift = stats.clock_drift
            report.bit_rate = round(8 * received / watched) if watched > 1 else None
        elif stats.span > 0:
            report.bit_rate = source.info.bit_rate

    def _neighbour(self) -> int | None:
        """Return an open port among the usual ports of cameras, if the port of the URL failed."""
        failed = self._report.steps[-1].name if self._report.steps else ""
        host = self._parts.hostname
        if failed not in {"connect", "describe"} or host is None:
            return None
        for port in (554, 8554):
            if port == port_of(self._url) or self._left(1.0) < 0.3:
                continue
            with contextlib.suppress(OSError), socket.create_connection((host, port), 0.5):
                return port
        return None


def _resolve(host: str, port: int, timeout: float) -> list[Any]:
    """Call `getaddrinfo`, which has no timeout, with a timeout."""
    found: list[Any] = []

    def ask() -> None:
        with contextlib.suppress(OSError, UnicodeError):
            found.extend(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

    thread = threading.Thread(target=ask, name="resolve", daemon=True)
    thread.start()
    thread.join(timeout)
    if found:
        return list(found)
    if thread.is_alive():
        raise StreamerError(
            ErrorCode.STREAM_TIMEOUT,
            f"The name server did not respond for '{redact(host)}': use the camera's IP address.",
        )
    raise source_errors.unknown_host(host)
