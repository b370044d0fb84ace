"""Make TLS connections: to servers with a trusted certificate, and to cameras."""

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator

from streamer.errors import ErrorCode, StreamerError


def trusting(verify: bool) -> ssl.SSLContext:
    """Return the TLS context for https.

    With `verify`, the certificate must be for the host's name, and signed by an authority that
    this machine trusts or that SSL_CERT_FILE or SSL_CERT_DIR name.

    Raises StreamerError(STREAM_TLS_FAILED) if SSL_CERT_FILE cannot be read.
    """
    if not verify:
        return unchecked()
    import httpx  # slow to import, and not needed for cameras

    try:
        context = httpx.create_ssl_context()  # Mozilla's list, unless the environment names another
        context.load_default_certs()  # this machine's list, to which administrators add their own
    except OSError:
        raise StreamerError(
            ErrorCode.STREAM_TLS_FAILED,
            f"SSL_CERT_FILE ({os.environ.get('SSL_CERT_FILE', '')}) cannot be read as a list of "
            "certificates: set it to a PEM file, or unset it.",
        ) from None
    return context


def unchecked() -> ssl.SSLContext:
    """Return the TLS context for cameras: any certificate, because they sign their own; old TLS.

    FFmpeg does the same. It does not protect against a man in the middle.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def shake_hands(
    plain: socket.socket, context: ssl.SSLContext, *, within: float, host: str | None = None
) -> ssl.SSLSocket:
    """Encrypt `plain`, which is taken over, and closed on errors. Raises OSError."""
    encrypted = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
    try:
        with time_limit(encrypted, within):
            encrypted.do_handshake()
    except BaseException:
        encrypted.close()
        raise
    return encrypted


@contextlib.contextmanager
def time_limit(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Shut `connection` down after `seconds`; a socket timeout would restart with every byte.

    Raises TimeoutError if the time ran out.
    """
    late = threading.Event()

    def cut() -> None:
        late.set()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(
                connection, socket.SHUT_RDWR
            )  # SSLSocket.shutdown is not thread-safe

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception:
        if not late.is_set():
            raise
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError
