"""What goes wrong with a source, as a stable code and a sentence that says what to do.

FFmpeg's own messages contain the URL with its password, so none of their text is ever used.
"""

import socket
import ssl
from urllib.parse import urlsplit

import av

from streamer.errors import ErrorCode, StreamerError
from streamer.media import tls
from streamer.media.urls import TLS_SCHEMES, is_device, is_remote, port_of, redact

_TLS_TIMEOUT = 2.0
_CERTIFICATES = {  # by OpenSSL's numbers
    9: ("is not valid yet", "check the clocks of the server and of this machine"),
    10: ("has expired", "renew it on the server, check this machine's clock"),
    62: ("is for another host", "give the URL with the name that it is for"),
    64: ("is for another address", "give the URL with the name that it is for"),
}


def timed_out(url: str, seconds: float) -> StreamerError:
    """The source said nothing for `seconds`."""
    return StreamerError(
        ErrorCode.STREAM_TIMEOUT,
        f"{redact(url)} sent nothing for {round(seconds, 1):g} s: check that the camera is on "
        "and that no firewall is between.",
    )


def closed(url: str) -> StreamerError:
    """A live source ended."""
    return StreamerError(
        ErrorCode.STREAM_CONNECTION_FAILED,
        f"{redact(url)} closed the connection: it will be tried again.",
    )


def changed(url: str) -> StreamerError:
    """A live source sends what its decoder, which worked before, cannot read."""
    return StreamerError(
        ErrorCode.STREAM_CONNECTION_FAILED,
        f"{redact(url)} sends something else than it began with: it will be opened anew.",
    )


def clock_wrong(url: str) -> StreamerError:
    """A live source's timestamps do not follow real time."""
    return StreamerError(
        ErrorCode.STREAM_CLOCK_WRONG,
        f"The timestamps of {redact(url)} do not follow real time, so its frames are dated by "
        "their arrival: check the camera's clock and firmware.",
    )


def broke_off(url: str) -> StreamerError:
    """A recording stopped coming before its end."""
    return StreamerError(
        ErrorCode.STREAM_CONNECTION_FAILED,
        f"{redact(url)} broke off and could not be taken up again: attach it anew.",
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


def no_key_frames(url: str) -> StreamerError:
    """Only key frames were asked for, and none came."""
    return StreamerError(
        ErrorCode.STREAM_CODEC_UNSUPPORTED,
        f"{redact(url)} sends no key frame that can be shown by itself: choose the sampling mode "
        "'fps', or set a key frame interval in the camera.",
    )


def damaged(url: str, seconds: float) -> StreamerError:
    """A recording broke off in the middle."""
    return StreamerError(
        ErrorCode.STREAM_CODEC_UNSUPPORTED,
        f"{redact(url)} is damaged after {seconds:.1f} s: what came before was analysed.",
    )


def no_key_frame(url: str, seconds: float) -> StreamerError:
    """Packets came, but nothing that decoding can begin with."""
    return StreamerError(
        ErrorCode.STREAM_TIMEOUT,
        f"{redact(url)} sent video, but no key frame in {seconds:.0f} s: "
        "set the camera's key frame interval (I-frame interval, GOP) to 1 or 2 seconds.",
    )


def nothing_listens(url: str) -> StreamerError:
    """The port is closed."""
    return _connection(f"Nothing listens at {redact(url)}: check the address and the port.")


def unknown_host(host: str) -> StreamerError:
    """The name does not resolve."""
    return _connection(f"The host name '{redact(host)}' is unknown: check the URL.")


def no_tls(url: str) -> StreamerError:
    """The port is open and speaks no TLS."""
    scheme = urlsplit(url).scheme
    return StreamerError(
        ErrorCode.STREAM_TLS_FAILED,
        f"No encrypted connection to {redact(url)}: check its certificate and port, "
        f"or use {scheme[:-1]}://.",
    )


def not_rtsp(url: str, speaks: str | None) -> StreamerError:
    """The port answers, in another language."""
    if speaks == "TLS":
        return wants_tls(url)
    what = f"speaks {speaks}, not RTSP" if speaks else "did not answer as a camera does"
    return _connection(f"{redact(url)} {what}: check the port and the scheme.")


def wants_tls(url: str) -> StreamerError:
    """The port speaks TLS, which was not asked for."""
    scheme = urlsplit(url).scheme
    return _connection(f"The port of {redact(url)} is an encrypted one: use {scheme}s://.")


def refused(url: str, status: int, *, asked: str | None = None) -> StreamerError:
    """An RTSP server answered `status`, not 200; `asked` is the kind of login that it wants."""
    shown = redact(url)
    if status == 401 and "@" not in urlsplit(url).netloc:
        return StreamerError(
            ErrorCode.STREAM_AUTH_FAILED,
            f"The camera asks for a user name and a password ({asked or 'some'} login): "
            "put them into the URL, rtsp://user:password@host/path.",
        )
    if status in (401, 403):
        return StreamerError(
            ErrorCode.STREAM_AUTH_FAILED,
            f"The camera refused the user name or password: check them in the URL ({shown}).",
        )
    if status == 404:
        return StreamerError(
            ErrorCode.STREAM_NOT_FOUND,
            f"The camera has no such path: check what follows the host in {shown}.",
        )
    return _connection(
        f"{shown} refused to serve (RTSP status {status}): "
        "check the path, and how many viewers the camera allows at once."
    )


def http_refused(url: str, status: int) -> StreamerError:
    """A web server answered `status`."""
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
    return _connection(f"{redact(url)} answers with status {status}: check the URL and the server.")


def not_http(url: str) -> StreamerError:
    """The port answers, in another language."""
    return _connection(
        f"{redact(url)} did not answer as a web server does: check the port, and whether it is "
        "http:// or https://."
    )


def unreachable(url: str) -> StreamerError:
    """There is no way to it."""
    return _connection(f"{redact(url)} cannot be reached: check the address and the network.")


def untrusted(url: str, error: ssl.SSLCertVerificationError) -> StreamerError:
    """Its certificate is not one that this machine trusts."""
    what, remedy = _CERTIFICATES.get(
        error.verify_code,
        (
            "is signed by nobody whom this machine trusts",
            "let SSL_CERT_FILE name the certificate of the authority that signed it",
        ),
    )
    return StreamerError(
        ErrorCode.STREAM_TLS_FAILED,
        f"The certificate of {redact(url)} {what}: {remedy}, or set https_verify to false.",
    )


def unknown_login(url: str) -> StreamerError:
    """The server wants a login that FFmpeg does not know."""
    return StreamerError(
        ErrorCode.STREAM_AUTH_FAILED,
        f"{redact(url)} asks for a kind of login that is not supported: "
        "set the camera's RTSP authentication to Digest (MD5) or Basic.",
    )


def from_exception(
    error: Exception, url: str, *, waited: float = 0.0, timeout: float = 0.0
) -> StreamerError:
    """The StreamerError for what PyAV raised after `waited` seconds under `timeout`."""
    if isinstance(error, StreamerError):
        return error
    shown = redact(url)
    if isinstance(error, av.HTTPUnauthorizedError | av.HTTPForbiddenError):
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
        return _connection(f"{shown} refused to serve: check the URL and the camera's own log.")
    if isinstance(error, av.InvalidDataError | av.ArgumentError):
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
    if isinstance(error, av.InvalidDataError | av.ArgumentError):  # no, or no allowed, container
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
    return not_rtsp(url, "TLS" if wants_encryption(url) else None)


def _diagnose(url: str) -> StreamerError:
    """FFmpeg said 'input/output error': ask the network itself what that means."""
    if url.startswith(("http:", "https:")):  # we have opened it: addresses are checked there
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
    """Whether the port of a camera's `url` speaks TLS, which its scheme does not."""
    return urlsplit(url).scheme in {"rtsp", "rtmp"} and _speaks_tls(url)


def _speaks_tls(url: str) -> bool:
    address = (urlsplit(url).hostname or "", port_of(url))
    try:
        with socket.create_connection(address, _TLS_TIMEOUT) as plain:
            tls.shake_hands(plain, tls.unchecked(), within=_TLS_TIMEOUT).close()
            return True
    except OSError:
        return False
