"""Fetch video over http(s) in place of FFmpeg, and check every address before connecting.

FFmpeg resolves names by itself and follows any redirect. Here each name is resolved once, its
addresses are checked, and the connection goes to a checked address: for the URL, for every
redirect, and for everything that a playlist names.
"""

import ssl
import threading
from collections.abc import Generator, Iterator
from urllib.parse import unquote, urlsplit

import httpx
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from streamer.errors import ErrorCode, StreamerError
from streamer.media import source_errors, tls
from streamer.media.access_policy import AccessPolicy
from streamer.media.urls import redact

_MAX_ATTEMPTS = 5
"""Requests to resume a recording whose download ended early."""

_MAX_SKIP = 1 << 18
"""Bytes to skip by reading them; a longer seek makes a new request."""

_MAX_REDIRECTS = 8
_MAX_ENCRYPTED = 64 << 20
"""Bytes of an encrypted segment, which is decrypted as a whole."""

_HEADERS = {"User-Agent": "nvila-streamer", "Accept": "*/*", "Accept-Encoding": "identity"}


class _CheckedTransport(httpx.BaseTransport):
    """Connects only to addresses that the policy allows."""

    def __init__(self, access: AccessPolicy) -> None:
        self._access = access
        self._plain = httpx.HTTPTransport(verify=False)
        self._encrypted: httpx.HTTPTransport | None = (
            None  # created when needed: loading certificates is slow
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request` to the first address of its host that answers."""
        host, url = request.url.host, request.url
        if url.scheme not in {"http", "https"}:
            raise httpx.UnsupportedProtocol("http and https only", request=request)
        port = url.port or (443 if url.scheme == "https" else 80)
        failure: httpx.ConnectError | httpx.ConnectTimeout | None = None
        for address in self._access.addresses(host, port, str(url)):
            request.url = url.copy_with(host=address)
            request.extensions = {**request.extensions, "sni_hostname": host}
            try:
                response = self._transport(url.scheme).handle_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
            else:
                return response
            finally:
                request.url = url  # redirects, logins and errors refer to the name
        assert failure is not None
        raise failure

    def close(self) -> None:
        """Close all connections."""
        self._plain.close()
        if self._encrypted is not None:
            self._encrypted.close()

    def _transport(self, scheme: str) -> httpx.HTTPTransport:
        if scheme == "http":
            return self._plain
        if self._encrypted is None:
            self._encrypted = httpx.HTTPTransport(verify=tls.trusting(self._access.verify))
        return self._encrypted


class _Login(httpx.Auth):
    """Basic or Digest authentication, as the server requires."""

    def __init__(self, user: str, password: str) -> None:
        self._user, self._password = user, password
        self._chosen: httpx.Auth | None = None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the first request without a password, then authenticate as the server requires."""
        if self._chosen is None:
            response = yield request
            if response.status_code != 401:
                return
            wanted = response.headers.get("www-authenticate", "").lower()
            kind = httpx.DigestAuth if "digest" in wanted else httpx.BasicAuth
            self._chosen = kind(self._user, self._password)
        yield from self._chosen.auth_flow(request)


class HttpOpener:
    """Opens `url`, and the files that a playlist there names, for FFmpeg.

    The user and password of `url` are only sent to its own host. If a file cannot be opened,
    FFmpeg reads an empty file, and `error` keeps the reason.
    """

    def __init__(self, url: str, access: AccessPolicy, *, live: bool, timeout: float) -> None:
        parts = urlsplit(url)
        self._shown = redact(url)
        self._url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        self._live = live
        self._timeout = timeout
        user, password = unquote(parts.username or ""), unquote(parts.password or "")
        self._login = _Login(user, password) if parts.username is not None else None
        self._client = httpx.Client(
            transport=_CheckedTransport(access),
            headers=_HEADERS,
            timeout=timeout,
            follow_redirects=True,
            max_redirects=_MAX_REDIRECTS,
            trust_env=False,  # a proxy could connect to any address
        )
        self._files: list[HttpFile] = []
        self._closed = threading.Event()
        self.error: StreamerError | None = None

    def open_first(self) -> "HttpFile":
        """Open the file at `url` itself. Raises StreamerError if that fails."""
        file = self._file(self._url)
        file.fill()
        if self.error is not None:
            raise self.error
        return file

    def open_again(self) -> "HttpFile":
        """Open the file at `url` again; if that fails, it is empty and `error` says why."""
        return self._file(self._url)

    def wait(self, seconds: float) -> bool:
        """Sleep; return False as soon as the opener is interrupted or closed."""
        return not self._closed.wait(seconds)

    def open(self, url: str, flags: int = 1, options: dict[str, str] | None = None) -> "HttpFile":
        """Open a file that a playlist names: the `io_open` of FFmpeg."""
        options = options or {}
        encrypted = url.startswith(("crypto+", "crypto:"))
        target = url[len("crypto+") :] if encrypted else url
        if flags & 2 or not target.startswith(("http://", "https://")):
            self.failed(_not_allowed(self._shown, target))
            return HttpFile(self, "")
        if encrypted:
            return _Decrypted(self, target, options.get("key", ""), options.get("iv", ""))
        return self._file(target)

    def interrupt(self) -> None:
        """End all waits; may be called from another thread."""
        self._closed.set()

    def close(self) -> None:
        """Close all files and connections."""
        self._closed.set()
        for file in self._files:
            file.close()
        self._client.close()

    def failed(self, error: StreamerError) -> None:
        """Keep an error: the first of a recording, the last of a live stream."""
        forbidden = self.error is not None and self.error.code is ErrorCode.STREAM_URL_FORBIDDEN
        if self.error is None or (self._live and not forbidden):
            self.error = error

    def succeeded(self) -> None:
        """Clear the error of a live stream that continues."""
        if self._live and self.error and self.error.code is not ErrorCode.STREAM_URL_FORBIDDEN:
            self.error = None

    def request(self, url: str, start: int) -> httpx.Response:
        """Request `url` from byte `start` on.

        Raises StreamerError, also for a status other than success.
        """
        parts, own = urlsplit(url), urlsplit(self._url)
        same_host = (parts.scheme, parts.netloc) == (own.scheme, own.netloc)
        headers = {"Range": f"bytes={start}-"}
        try:
            request = self._client.build_request("GET", url, headers=headers)
            response = self._client.send(
                request, stream=True, auth=self._login if same_host and self._login else None
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if isinstance(error, httpx.RemoteProtocolError):
                raise source_errors.not_http(self._named(url)) from None
            raise self.explain(error, url) from None
        if response.status_code == 416:  # range not satisfiable: the end
            return response
        if not response.is_success:
            response.close()
            raise source_errors.http_refused(self._named(url), response.status_code)
        return response

    def explain(self, error: Exception, url: str) -> StreamerError:
        """Translate an httpx exception; its own text may contain the URL with its password."""
        shown = self._named(url)
        if isinstance(error, httpx.InvalidURL):
            return source_errors.unreachable(shown)
        if isinstance(error, httpx.TimeoutException):
            return source_errors.timed_out(shown, self._timeout)
        if isinstance(error, httpx.TooManyRedirects | httpx.UnsupportedProtocol):
            return _not_allowed(self._shown, "a redirect")
        if isinstance(error, httpx.ConnectError):
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, ssl.SSLCertVerificationError):
                    return source_errors.untrusted(shown, cause)
                if isinstance(cause, ssl.SSLError):
                    return source_errors.no_tls(shown)
                if isinstance(cause, ConnectionRefusedError):
                    return source_errors.nothing_listens(shown)
                cause = cause.__cause__ or cause.__context__
            return source_errors.unreachable(shown)
        return source_errors.closed(shown) if self._live else source_errors.broke_off(shown)

    @property
    def live(self) -> bool:
        """Whether the source is live: an interrupted recording is resumed, a live stream is not."""
        return self._live

    def _named(self, url: str) -> str:
        return self._shown if url == self._url else redact(url)

    def _file(self, url: str) -> "HttpFile":
        file = HttpFile(self, url)
        self._files = [*(f for f in self._files if not f.closed), file]
        return file


class HttpFile:
    """A file over http(s) as FFmpeg reads it. An error ends it; the opener keeps the error."""

    def __init__(self, opener: HttpOpener, url: str) -> None:
        self._opener = opener
        self.name = url
        """URL after redirects, to which the entries of a playlist are relative."""
        self.closed = not url
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._chunk = b""
        self._offset = 0  # in the chunk
        self._at = 0  # position of the chunk's end
        self._position = 0
        self.size: int | None = None
        """Length in bytes, once it is open, if the server says so."""
        self.content_type = ""
        """What the server calls it, in lower case, once it is open."""
        self._ranges = False

    def fill(self) -> bytes:
        """Open the file if necessary, and return the data that has arrived but was not read."""
        attempts = 0
        while self._offset >= len(self._chunk) and not self.closed:
            try:
                if self._response is None:
                    self._open()
                self._chunk, self._offset = next(self._chunks), 0
                self._at += len(self._chunk)
            except StopIteration:
                break
            except StreamerError as error:
                attempts += 1
                if not self._may_retry(attempts):
                    self._fail(error)
            except httpx.HTTPError as error:
                attempts += 1
                self._disconnect()
                if not self._may_retry(attempts):
                    self._fail(self._opener.explain(error, self.name))
        return self._chunk[self._offset :]

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes as soon as any arrive; none at the end."""
        data = self.fill()[:size]
        self._offset += len(data)
        self._position += len(data)
        return data

    def seekable(self) -> bool:
        """Return whether the server supports ranges."""
        self.fill()
        return self._ranges

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position, which takes effect at the next read; return -1 if it is unknown."""
        base = {0: 0, 1: self._position, 2: self.size}.get(whence & 0xFF)
        if base is None or base + offset < 0:
            return -1
        target = base + offset
        ahead = target - self._position
        if 0 <= ahead <= len(self._chunk) - self._offset:
            self._offset += ahead
        elif not (self._response is not None and 0 < ahead <= _MAX_SKIP and self._skip(ahead)):
            self._disconnect()
        self._position = target
        return target

    def tell(self) -> int:
        """Return the position of the next byte."""
        return self._position

    def close(self) -> None:
        """Close the connection; nothing can be read afterwards."""
        self._disconnect()
        self.closed = True

    def _skip(self, ahead: int) -> bool:
        target = self._position + ahead
        while self._position < target:
            if not self.read(target - self._position):
                return False
        return True

    def _open(self) -> None:
        response = self._opener.request(self.name, self._position)
        partial = response.status_code == 206
        if self._position and not partial and response.status_code != 416:
            response.close()
            raise source_errors.broke_off(
                redact(self.name)
            )  # the server would send it from the beginning
        self._ranges = partial or response.headers.get("accept-ranges") == "bytes"
        if self.size is None:
            self.size = _size_of(response)
            self.content_type = response.headers.get("content-type", "").lower()
        self._opener.succeeded()
        self.name = str(response.url)
        self._response, self._at = response, self._position
        self._chunks = response.iter_raw() if response.status_code != 416 else iter(())

    def _may_retry(self, attempts: int) -> bool:
        return self._position > 0 and not self._opener.live and attempts < _MAX_ATTEMPTS

    def _fail(self, error: StreamerError) -> None:
        self._opener.failed(error)
        self.close()

    def _disconnect(self) -> None:
        response, self._response = self._response, None
        self._chunk, self._offset, self._chunks = b"", 0, iter(())
        if response is not None:
            response.close()


class _Decrypted(HttpFile):
    """A segment in AES-128-CBC; FFmpeg has fetched the key with the same opener."""

    def __init__(self, opener: HttpOpener, url: str, key: str, iv: str) -> None:
        super().__init__(opener, url)
        self._key, self._iv = bytes.fromhex(key), bytes.fromhex(iv)
        self._plain: bytes | None = None

    def fill(self) -> bytes:
        """Fetch and decrypt the segment; return the data that was not read."""
        if self._plain is None:
            self._plain = self._decrypt()
        return self._plain[self._position :]

    def seekable(self) -> bool:
        """Return True: the segment is in memory."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Set the position and return it."""
        base = {0: 0, 1: self._position, 2: len(self._plain or b"")}.get(whence & 0xFF, 0)
        self._position = max(0, base + offset)
        return self._position

    def _decrypt(self) -> bytes:
        data = bytearray()
        while len(data) < _MAX_ENCRYPTED:
            chunk = super().fill()
            if not chunk:
                break
            data += chunk
            self._chunk = b""
            self._offset = 0
        self.close()
        try:
            reader = Cipher(algorithms.AES(self._key), modes.CBC(self._iv)).decryptor()
            padding = PKCS7(128).unpadder()
            padded = reader.update(bytes(data)) + reader.finalize()
            return padding.update(padded) + padding.finalize()
        except ValueError:
            self._opener.failed(source_errors.cannot_decode(redact(self.name), "encrypted"))
            return b""


def _size_of(response: httpx.Response) -> int | None:
    total = response.headers.get("content-range", "").rpartition("/")[2]
    if response.status_code == 200:
        total = response.headers.get("content-length", "")
    return int(total) if total.isdigit() else None


def _not_allowed(source: str, target: str) -> StreamerError:
    kind = target.partition(":")[0][:20] if "://" in target else "this"
    return StreamerError(
        ErrorCode.STREAM_URL_FORBIDDEN,
        f"{source} refers to a source that may not be opened ({kind}): a playlist or redirect on "
        "the network may only lead to http:// and https://.",
    )
