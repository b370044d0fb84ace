"""What goes wrong with a source, as a stable code and a sentence that says what to do.

FFmpeg's own messages contain the URL with its password, so none of their text is ever used.
"""

import socket
import ssl
from urllib.parse import urlsplit

import av

from streamer.errors import ErrorCode, StreamerError
from streamer.media.urls import is_device, redact

_TLS_SCHEMES = frozenset({"rtsps", "rtmps", "https"})
_DEFAULT_PORTS = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "http": 80, "https": 443}
_TLS_TIMEOUT = 2.0


def is_remote(url: str) -> bool:
    """Whether `url` is reached over a network: neither a file nor a webcam."""
    return "://" in url


def timed_out(url: str, seconds: float) -> StreamerError:
    """The source said nothing for `seconds`."""
    return StreamerError(
        ErrorCode.STREAM_TIMEOUT,
        f"{redact(url)} sent nothing for {seconds:g} s: check that the camera is on "
        "and that no firewall is between.",
    )


def closed(url: str) -> StreamerError:
    """A live source ended."""
    return StreamerError(
        ErrorCode.STREAM_CONNECTION_FAILED,
        f"{redact(url)} closed the connection: it will be tried again.",
    )


def no_video(url: str) -> StreamerError:
    """There is no picture in the source."""
    return StreamerError(
        ErrorCode.STREAM_NO_VIDEO, f"{redact(url)} has no video: give a source with pictures in it."
    )


def cannot_decode(url: str, codec: str | None) -> StreamerError:
    """The pictures are there, but this FFmpeg cannot read them."""
    return StreamerError(
        ErrorCode.STREAM_CODEC_UNSUPPORTED,
        f"The video of {redact(url)} ({codec or 'unknown codec'}) cannot be decoded: "
        "set the camera to H.264 or convert the file.",
    )


def damaged(url: str, seconds: float) -> StreamerError:
    """A recording broke off in the middle."""
    return StreamerError(
        ErrorCode.STREAM_CODEC_UNSUPPORTED,
        f"{redact(url)} is damaged after {seconds:.1f} s: what came before was analysed.",
    )


def from_exception(
    error: Exception, url: str, *, waited: float = 0.0, timeout: float = 0.0
) -> StreamerError:
    """The StreamerError for what PyAV raised after `waited` seconds under `timeout`."""
    if isinstance(error, StreamerError):
        return error
    shown = redact(url)
    if isinstance(error, av.HTTPUnauthorizedError | av.HTTPForbiddenError):
        return StreamerError(
            ErrorCode.STREAM_AUTH_FAILED,
            f"The camera refused the user name or password: check them in the URL ({shown}).",
        )
    if isinstance(error, av.HTTPNotFoundError):
        return StreamerError(
            ErrorCode.STREAM_NOT_FOUND,
            f"The camera has no such path: check what follows the host in {shown}.",
        )
    if not is_remote(url):
        return _local(error, url)
    expired = bool(timeout) and waited >= 0.9 * timeout
    if isinstance(error, TimeoutError | av.ExitError) or expired:
        return timed_out(url, timeout or waited)
    if isinstance(error, ConnectionRefusedError):
        return _connection(f"Nothing listens at {shown}: check the address and the port.")
    if isinstance(error, av.HTTPError):
        return _connection(f"{shown} refused to serve: check the URL and the camera's own log.")
    if isinstance(error, av.InvalidDataError):
        return _not_video(url)
    return _diagnose(url)


def _connection(message: str) -> StreamerError:
    return StreamerError(ErrorCode.STREAM_CONNECTION_FAILED, message)


def _local(error: Exception, url: str) -> StreamerError:
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
            f"The {kind} {url} may not be read: give this user the permission.",
        )
    if isinstance(error, av.InvalidDataError):
        return StreamerError(
            ErrorCode.STREAM_NO_VIDEO, f"{url} is not a video, or it is damaged: give a video file."
        )
    return StreamerError(
        ErrorCode.STREAM_CONNECTION_FAILED,
        f"The {kind} {url} cannot be opened ({type(error).__name__}): check that it is readable.",
    )


def _not_video(url: str) -> StreamerError:
    if url.startswith(("http:", "https:")):
        return StreamerError(
            ErrorCode.STREAM_NO_VIDEO,
            f"{redact(url)} is not a video: give the URL of the stream itself, not of a web page.",
        )
    return _connection(
        f"{redact(url)} did not answer as a camera does: check the port and the scheme."
    )


def _diagnose(url: str) -> StreamerError:
    """FFmpeg said 'input/output error': ask the network itself what that means."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or _DEFAULT_PORTS.get(parts.scheme, 0)
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return _connection(f"The host name '{host}' is unknown: check the URL.")
    if parts.scheme in _TLS_SCHEMES and not _speaks_tls(str(addresses[0][4][0]), port):
        return StreamerError(
            ErrorCode.STREAM_TLS_FAILED,
            f"No encrypted connection to {redact(url)}: check its certificate and port, "
            f"or use {parts.scheme[:-1]}://.",
        )
    return _connection(f"{redact(url)} cannot be reached: check the address and the network.")


def _speaks_tls(address: str, port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address, port), _TLS_TIMEOUT) as plain,
            context.wrap_socket(plain),
        ):
            return True
    except OSError:
        return False
