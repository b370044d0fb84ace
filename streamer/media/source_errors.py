"""Describe failures of a source by a stable code and a sentence that says what to do.

FFmpeg's messages contain the URL with its password, so their text is never used.
"""

import os
import socket
import ssl
import struct
from collections.abc import Sequence
from urllib.parse import urlsplit

from nvila_core.file_kind import EMPTY, FileKind, describe, file_kind
from streamer.errors import ErrorCode, StreamerError
from streamer.media import tls
from streamer.media.urls import TLS_SCHEMES, is_device, is_remote, path_of, port_of, redact

_TLS_TIMEOUT = 2.0
_RTSP_STATUS = {
    400: ("did not understand the request", "check the path of the URL"),
    451: ("does not know a parameter of the request", "check the path and the query of the URL"),
    453: (
        "has no bandwidth for another viewer",
        "close other players, or lower the camera's bit rate or its number of streams",
    ),
    454: ("ended the session while it began", "restart the camera if this happens again"),
    455: (
        "does not start the stream in its present state",
        "close other players, and restart the camera if this happens again",
    ),
    459: ("does not let its tracks be played one by one", "give the URL of a single track"),
    460: ("does not let its tracks be played together", "give the URL of a single track"),
    461: ("does not support the transport", "set the transport to tcp or udp"),
    500: ("has an internal error", "restart the camera, and update its firmware"),
    501: ("does not support the request", "update the camera's firmware"),
    503: ("is too busy", "check how many viewers the camera allows, and close other players"),
    505: ("does not speak RTSP 1.0", "update the camera's firmware"),
    551: ("does not support an option of the request", "update the camera's firmware"),
}
"""By RTSP status: what it means, and what to do."""

_CERTIFICATES = {  # by the error number of OpenSSL
    9: ("is not valid yet", "check the clocks of the server and of this machine"),
    10: ("has expired", "renew it on the server, or check this machine's clock"),
    62: ("is for another host", "use the host name of the certificate in the URL"),
    64: ("is for another address", "use the host name of the certificate in the URL"),
}


_MAX_BOXES = 1000
"""Boxes of an MP4 file that are looked at."""


def timed_out(url: str, seconds: float) -> StreamerError:
    """Return the error for a source that sent nothing for `seconds`."""
    return StreamerError(
        ErrorCode.STREAM_TIMEOUT,
        f"{redact(url)} sent nothing for {round(seconds, 1):g} s: check that the camera is on "
        "and that no firewall blocks it.",
    )


def closed(url: str) -> StreamerError:
    """Return the error for a live source that ended."""
    return StreamerError(
        ErrorCode.STREAM_CONNECTION_FAILED,
        f"{redact(url)} closed the connection: check the camera if reconnecting does not help.",
    )


def changed(url: str) -> StreamerError:
    """Return the error for a live source whose video no longer fits its decoder."""
    return StreamerError(
        ErrorCode.STREAM_CONNECTION_FAILED,
        f"{redact(url)} changed its video format: the stream will be reconnected.",
    )


def clock_wrong(url: str) -> StreamerError:
    """Return the warning for a live source whose timestamps do not follow real time."""
    return StreamerError(
        ErrorCode.STREAM_CLOCK_WRONG,
        f"The timestamps of {redact(url)} do not follow real time, so its frames are dated by "
        "arrival: check the camera's clock and firmware.",
    )


def levels_scaled(url: str) -> StreamerError:
    """Return the warning for a source whose pictures are scaled to 8 bits by their range."""
    return StreamerError(
        ErrorCode.STREAM_LEVELS_SCALED,
        f"The pictures of {redact(url)} have more than 8 bits a pixel and fill little of them, as "
        "those of thermal cameras: each is scaled from its darkest value to its brightest, so "
        "brightness cannot be compared between pictures.",
    )


def ended_early(url: str, reached: float, announced: float) -> StreamerError:
    """Return the error for a recording that is shorter than it says, in seconds."""
    return StreamerError(
        ErrorCode.STREAM_ENDED_EARLY,
        f"{redact(url)} ended after {reached:.1f} of {announced:.1f} s: the rest is missing from "
        "the file; copy it again.",
    )


def streams_changed(url: str) -> StreamerError:
    """Return the error for a recording, not seekable, whose video continues in a new stream."""
    return StreamerError(
        ErrorCode.STREAM_CODEC_UNSUPPORTED,
        f"The video of {redact(url)} continues in another stream of the file: download the file "
        "and give its path, or convert it.",
    )


def broke_off(url: str) -> StreamerError:
    """Return the error for a recording whose download ended early."""
    return StreamerError(
        ErrorCode.STREAM_CONNECTION_FAILED,
        f"The download of {redact(url)} ended early and cannot be resumed: attach it again.",
    )


def no_video(url: str) -> StreamerError:
    """Return the error for a source without video."""
    return StreamerError(
        ErrorCode.STREAM_NO_VIDEO,
        f"{redact(url)} contains no video: give a source with a video track.",
    )


def too_large(url: str, width: int, height: int, most: int, live: bool) -> StreamerError:
    """Return the error for a source whose frames have more than `most` pixels.

    A width of 0: pictures whose header was refused for it, or is damaged.
    """
    if width:
        has = f"have {width} x {height} pixels, more than the {most / 1e6:g} million that are"
    else:
        has = f"are damaged, or have more than the {most / 1e6:g} million pixels that are"
    setting = "max_live_pixels" if live else "max_pixels"
    return StreamerError(
        ErrorCode.STREAM_CODEC_UNSUPPORTED,
        f"The frames of {redact(url)} {has} allowed: choose a smaller resolution, or raise the "
        f"setting {setting}.",
    )


def cannot_decode(url: str, codec: str | None) -> StreamerError:
    """Return the error for video that this build of FFmpeg cannot decode."""
    return StreamerError(
        ErrorCode.STREAM_CODEC_UNSUPPORTED,
        f"The video of {redact(url)} ({codec or 'unknown codec'}) cannot be decoded: "
        "set the camera to H.264, or convert the file.",
    )


def no_key_frames(url: str) -> StreamerError:
    """Return the error for sampling by key frames of a source without any."""
    return StreamerError(
        ErrorCode.STREAM_CODEC_UNSUPPORTED,
        f"{redact(url)} sends no key frame that can be decoded alone: choose the sampling mode "
        "'fps', or set a key frame interval in the camera.",
    )


def damaged(url: str, seconds: float) -> StreamerError:
    """Return the error for a recording that is damaged after `seconds`."""
    return StreamerError(
        ErrorCode.STREAM_CODEC_UNSUPPORTED,
        f"{redact(url)} is damaged after {seconds:.1f} s: only the part before was analysed.",
    )


def no_key_frame(url: str, seconds: float) -> StreamerError:
    """Return the error for video without a key frame, with which decoding could start."""
    return StreamerError(
        ErrorCode.STREAM_TIMEOUT,
        f"{redact(url)} sent video, but no key frame within {seconds:.0f} s: "
        "set the camera's key frame interval (I-frame interval, GOP) to 1 or 2 seconds.",
    )


def nothing_listens(url: str) -> StreamerError:
    """Return the error for a closed port."""
    return _connection(f"Nothing listens at {redact(url)}: check the address and the port.")


def unknown_host(host: str) -> StreamerError:
    """Return the error for a host name that does not resolve."""
    return _connection(f"The host name '{redact(host)}' is unknown: check the URL.")


def no_tls(url: str) -> StreamerError:
    """Return the error for a port that does not speak TLS."""
    scheme = urlsplit(url).scheme
    return StreamerError(
        ErrorCode.STREAM_TLS_FAILED,
        f"{redact(url)} does not accept an encrypted connection: check the port and certificate, "
        f"or use {scheme[:-1]}://.",
    )


def not_rtsp(url: str, speaks: str | None) -> StreamerError:
    """Return the error for a port that speaks another protocol than RTSP."""
    if speaks == "TLS":
        return wants_tls(url)
    what = f"speaks {speaks}, not RTSP" if speaks else "does not answer like a camera"
    return _connection(f"{redact(url)} {what}: check the port and the scheme.")


def wants_tls(url: str) -> StreamerError:
    """Return the error for a port that requires TLS."""
    scheme = urlsplit(url).scheme
    return _connection(f"The port of {redact(url)} requires encryption: use {scheme}s://.")


def refused(url: str, status: int, *, asked: str | None = None) -> StreamerError:
    """Return the error for RTSP status `status`; `asked` is the login method of the server."""
    shown = redact(url)
    if status == 401 and "@" not in urlsplit(url).netloc:
        return StreamerError(
            ErrorCode.STREAM_AUTH_FAILED,
            f"The camera requires a user name and password ({asked or 'some'} login): "
            "put them into the URL, rtsp://user:password@host/path.",
        )
    if status == 401:
        return StreamerError(
            ErrorCode.STREAM_AUTH_FAILED,
            f"The camera refused the user name or password: check them in the URL ({shown}).",
        )
    if status == 403:
        return StreamerError(
            ErrorCode.STREAM_AUTH_FAILED,
            f"The camera refused the user name or password, or does not let this user watch: "
            f"check them in the URL ({shown}).",
        )
    if status == 404:
        return StreamerError(
            ErrorCode.STREAM_NOT_FOUND,
            f"The camera has no such path: check the part after the host in {shown}.",
        )
    reason, remedy = _RTSP_STATUS.get(
        status,
        ("refused the request", "check the path, and how many viewers the camera allows"),
    )
    return _connection(f"{shown} {reason} (RTSP status {status}): {remedy}.")


def no_transport(url: str, transport: str) -> StreamerError:
    """Return the error for a server that refuses `transport`, or with `auto`, every transport."""
    shown = redact(url)
    if transport == "auto" or url.startswith("rtsps:"):
        return _connection(
            f"{shown} supports neither TCP nor UDP (RTSP status 461): check the camera's streaming "
            "settings; multicast is not supported."
        )
    other = "udp" if transport == "tcp" else "tcp"
    return _connection(
        f"{shown} does not support the transport {transport} (RTSP status 461): set the transport "
        f"to {other} or auto."
    )


def too_many_redirects(url: str) -> StreamerError:
    """Return the error for a server whose redirects do not end."""
    return StreamerError(
        ErrorCode.STREAM_URL_FORBIDDEN,
        f"{redact(url)} redirects in a circle, or too often: give the URL of the camera itself.",
    )


def http_refused(url: str, status: int) -> StreamerError:
    """Return the error for HTTP status `status`."""
    if status in (401, 403):
        return StreamerError(
            ErrorCode.STREAM_AUTH_FAILED,
            f"The server refused the user name or password (status {status}): "
            f"check them in the URL ({redact(url)}).",
        )
    if status in (404, 410):
        return StreamerError(
            ErrorCode.STREAM_NOT_FOUND,
            f"The server has nothing at {redact(url)} (status {status}): check the path.",
        )
    return _connection(f"{redact(url)} returned status {status}: check the URL and the server.")


def not_http(url: str) -> StreamerError:
    """Return the error for a port that does not speak HTTP."""
    return _connection(
        f"{redact(url)} does not answer like a web server: check the port, and whether the scheme "
        "is http:// or https://."
    )


def unreachable(url: str) -> StreamerError:
    """Return the error for an address that cannot be reached."""
    return _connection(f"{redact(url)} cannot be reached: check the address and the network.")


def untrusted(url: str, error: ssl.SSLCertVerificationError) -> StreamerError:
    """Return the error for a certificate that this machine does not trust."""
    what, remedy = _CERTIFICATES.get(
        error.verify_code,
        (
            "is not signed by an authority that this machine trusts",
            "set SSL_CERT_FILE to the certificate of the authority that signed it",
        ),
    )
    return StreamerError(
        ErrorCode.STREAM_TLS_FAILED,
        f"The certificate of {redact(url)} {what}: {remedy}, or set https_verify to false.",
    )


def unknown_login(url: str, offers: Sequence[str] = ()) -> StreamerError:
    """Return the error for login methods that FFmpeg does not support; `offers` names them."""
    which = f" ({', '.join(redact(offer) for offer in offers)})" if offers else ""
    return StreamerError(
        ErrorCode.STREAM_AUTH_FAILED,
        f"{redact(url)} requires a login method that is not supported{which}: "
        "set the camera's RTSP authentication to Digest (MD5) or Basic alone.",
    )


def no_parameter_sets(url: str, codec: str) -> StreamerError:
    """Return the error for video that never says how it is encoded."""
    name = {"h264": "H.264", "hevc": "H.265"}.get(codec, codec)
    return StreamerError(
        ErrorCode.STREAM_CODEC_UNSUPPORTED,
        f"{redact(url)} sends {name} without its parameter sets (SPS and PPS), so it cannot be "
        "decoded: set the camera or encoder to send them before every key frame, or restart it.",
    )


def from_exception(
    error: Exception,
    url: str,
    *,
    waited: float = 0.0,
    timeout: float = 0.0,
    head: bytes | None = None,
) -> StreamerError:
    """Translate what PyAV raised after `waited` seconds, with `timeout`, into a StreamerError.

    `head` are the first bytes of what a server sent, None if they are not known.
    """
    import av  # here: programs that open no video need the sentences only

    if isinstance(error, StreamerError):
        return error
    shown = redact(url)
    if isinstance(error, av.HTTPUnauthorizedError):
        return refused(url, 401)
    if isinstance(error, av.HTTPForbiddenError):
        return refused(url, 403)
    if isinstance(error, av.HTTPNotFoundError):
        return refused(url, 404)
    if not is_remote(url):
        return _local(error, url)
    expired = bool(timeout) and waited >= 0.9 * timeout
    if isinstance(error, TimeoutError | av.ExitError) or expired:
        return timed_out(url, timeout or waited)
    if isinstance(error, ConnectionRefusedError):
        return nothing_listens(url)
    if isinstance(error, av.HTTPError):
        return _connection(f"{shown} refused the request: check the URL and the camera's log.")
    if isinstance(error, av.InvalidDataError | av.ArgumentError):
        return _not_video(url, head)
    return _diagnose(url)


def _connection(message: str) -> StreamerError:
    return StreamerError(ErrorCode.STREAM_CONNECTION_FAILED, message)


def _local(error: Exception, url: str) -> StreamerError:
    import av

    kind = "webcam" if is_device(url) else "file"
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        hint = "" if kind == "webcam" else " (a camera's URL begins with rtsp://)"
        return StreamerError(
            ErrorCode.STREAM_NOT_FOUND, f"There is no {kind} {url}: check the path{hint}."
        )
    if isinstance(error, IsADirectoryError):
        return StreamerError(
            ErrorCode.STREAM_NO_VIDEO, f"{url} is a directory: give one video file."
        )
    if isinstance(error, PermissionError):
        return StreamerError(
            ErrorCode.STREAM_CONNECTION_FAILED,
            f"The {kind} {url} is not readable: give this user read permission.",
        )
    if isinstance(error, av.InvalidDataError) and _lacks_index(path_of(url)):
        return StreamerError(
            ErrorCode.STREAM_NO_VIDEO,
            f"{url} is an MP4 file without its index, which is written last: the recording was "
            "cut off. Copy it again, or repair it with a tool such as untrunc.",
        )
    if isinstance(
        error, av.InvalidDataError | av.ArgumentError
    ):  # not a container, or not an allowed one
        what = describe(path_of(url))
        why = f"it {what}" if what else "or it is damaged: give a video file"
        return StreamerError(ErrorCode.STREAM_NO_VIDEO, f"{url} is not a video, {why}.")
    return StreamerError(
        ErrorCode.STREAM_CONNECTION_FAILED,
        f"The {kind} {url} cannot be opened ({type(error).__name__}): check that it is readable.",
    )


def _lacks_index(path: str) -> bool:
    """Return whether an MP4 file has no `moov` box among those at its top (ISO/IEC 14496-12)."""
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            at, kinds = 0, list[bytes]()
            while at + 8 <= length and len(kinds) < _MAX_BOXES:
                file.seek(at)
                size, kind = struct.unpack(">I4s", file.read(8))
                kinds.append(kind)
                if size == 1:
                    (size,) = struct.unpack(">Q", file.read(8).rjust(8, b"\0"))
                if size < 8:
                    break
                at += size
    except OSError:
        return False
    return bool(kinds) and kinds[0] == b"ftyp" and b"moov" not in kinds


def other_kind(url: str, kind: FileKind) -> StreamerError:
    """Return the error for a source that is something else than a video."""
    remedy = "give a video" if kind.picture else kind.remedy
    return StreamerError(
        ErrorCode.STREAM_NO_VIDEO, f"{redact(url)} is not a video, it is {kind.name}: {remedy}."
    )


def _not_video(url: str, head: bytes | None) -> StreamerError:
    if url.startswith(("http:", "https:")):
        kind = EMPTY if head == b"" else file_kind(head or b"")
        if kind is not None:
            return other_kind(url, kind)
        return StreamerError(
            ErrorCode.STREAM_NO_VIDEO,
            f"{redact(url)} is not a video: give the URL of the stream itself, not of a web page.",
        )
    return not_rtsp(url, "TLS" if wants_encryption(url) else None)


def _diagnose(url: str) -> StreamerError:
    """Find the cause of FFmpeg's 'input/output error' by probing the network."""
    if url.startswith(
        ("http:", "https:")
    ):  # http_source has connected already, with the checks of AccessPolicy
        return unreachable(url)
    host = urlsplit(url).hostname or ""
    try:
        socket.getaddrinfo(host, port_of(url), type=socket.SOCK_STREAM)
    except OSError:
        return unknown_host(host)
    if urlsplit(url).scheme in TLS_SCHEMES:
        return unreachable(url) if _speaks_tls(url) else no_tls(url)
    return wants_tls(url) if wants_encryption(url) else unreachable(url)


def wants_encryption(url: str) -> bool:
    """Return whether the port of `url`, an unencrypted camera scheme, speaks TLS."""
    return urlsplit(url).scheme in {"rtsp", "rtmp"} and _speaks_tls(url)


def _speaks_tls(url: str) -> bool:
    address = (urlsplit(url).hostname or "", port_of(url))
    try:
        with socket.create_connection(address, _TLS_TIMEOUT) as plain:
            tls.shake_hands(plain, tls.unchecked(), within=_TLS_TIMEOUT).close()
            return True
    except OSError:
        return False
