"""How encrypted connections are made: to servers that prove who they are, and to cameras."""

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Iterator

from streamer.errors import ErrorCode, StreamerError


def trusting(verify: bool) -> ssl.SSLContext:
    """For https. With `verify` the certificate has to be signed by an authority that this machine
    trusts, or one that SSL_CERT_FILE or SSL_CERT_DIR name, and be for the host's name.

    Raises StreamerError(STREAM_TLS_FAILED) when SSL_CERT_FILE cannot be read.
    """
    if not verify:
        return unchecked()
    import httpx  # takes a while, and cameras do without

    try:
        context = httpx.create_ssl_context()  # Mozilla's list, unless the environment names another
        context.load_default_certs()  # this machine's, where administrators put their own
    except OSError:
        raise StreamerError(
            ErrorCode.STREAM_TLS_FAILED,
            f"SSL_CERT_FILE ({os.environ.get('SSL_CERT_FILE', '')}) cannot be read as a list of "
            "certificates: let it name a PEM file, or unset it.",
        ) from None
    return context


def unchecked() -> ssl.SSLContext:
    """For cameras, which sign their own certificates: anybody's will do, and old TLS too.

    That is what FFmpeg does for them; nobody would notice somebody in between.
    """
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def shake_hands(
    plain: socket.socket, context: ssl.SSLContext, *, within: float, host: str | None = None
) -> ssl.SSLSocket:
    """`plain`, encrypted; it is used up, and closed when that fails. Raises OSError."""
    encrypted = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
    try:
        with bounded(encrypted, within):
            encrypted.do_handshake()
    except BaseException:
        encrypted.close()
        raise
    return encrypted


@contextlib.contextmanager
def bounded(connection: socket.socket, seconds: float) -> Iterator[None]:
    """Cut `connection` after `seconds`: a time-out of its own begins anew with every byte.

    Raises TimeoutError when it had to.
    """
    late = threading.Event()

    def cut() -> None:
        late.set()
        with contextlib.suppress(OSError):
            socket.socket.shutdown(connection, socket.SHUT_RDWR)  # an SSLSocket's own is not safe

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
