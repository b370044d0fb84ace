"""Video over http(s), fetched by us instead of FFmpeg, so that we know what is connected to.

FFmpeg asks the name server by itself and follows redirects wherever they lead. Here each address
is looked at, once, and that very address is connected to: for the URL, for every redirect, and
for all that a playlist names.
"""

import ssl
from collections.abc import Generator, Iterator
from urllib.parse import unquote, urlsplit

import httpx
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.padding import PKCS7

from streamer.errors import ErrorCode, StreamerError
from streamer.media import source_errors, tls
from streamer.media.access_policy import AccessPolicy
from streamer.media.urls import redact

_ATTEMPTS = 5
"""Times that a recording which broke off is asked for again before it counts as broken off."""

_SKIP = 1 << 18
"""Bytes that are read and thrown away rather than asked for anew."""

_REDIRECTS = 8
_MAX_ENCRYPTED = 64 << 20
"""Bytes of an encrypted segment at most: it is decrypted as a whole."""

_HEADERS = {"User-Agent": "nvila-streamer", "Accept": "*/*", "Accept-Encoding": "identity"}


class _CheckedTransport(httpx.BaseTransport):
    """Connects to addresses that were looked at, and to nothing else."""

    def __init__(self, access: AccessPolicy) -> None:
        self._access = access
        self._plain = httpx.HTTPTransport(verify=False)
        self._encrypted: httpx.HTTPTransport | None = None  # reading certificates takes a while

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
                response = self._carrier(url.scheme).handle_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
            else:
                return response
            finally:
                request.url = url  # redirects, logins and errors are about the name
        assert failure is not None
        raise failure

    def close(self) -> None:
        """Hang up."""
        self._plain.close()
        if self._encrypted is not None:
            self._encrypted.close()

    def _carrier(self, scheme: str) -> httpx.HTTPTransport:
        if scheme == "http":
            return self._plain
        if self._encrypted is None:
            self._encrypted = httpx.HTTPTransport(verify=tls.trusting(self._access.verify))
        return self._encrypted


class _Login(httpx.Auth):
    """Basic or digest, whichever the server asks for."""

    def __init__(self, user: str, password: str) -> None:
        self._user, self._password = user, password
        self._chosen: httpx.Auth | None = None

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Ask without the password first: what is sent depends on what the server wants."""
        if self._chosen is None:
            response = yield request
            if response.status_code != 401:
                return
            wanted = response.headers.get("www-authenticate", "").lower()
            kind = httpx.DigestAuth if "digest" in wanted else httpx.BasicAuth
            self._chosen = kind(self._user, self._password)
        yield from self._chosen.auth_flow(request)


class HttpOpener:
    """Opens `url` and, for FFmpeg, what a playlist there names.

    The user and password of `url` go to its own host only. FFmpeg cannot be told why something
    did not open: `error` keeps the reason, and it reads an empty file.
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
            max_redirects=_REDIRECTS,
            trust_env=False,  # a proxy would connect to whatever it likes
        )
        self._files: list[HttpFile] = []
        self.error: StreamerError | None = None

    def open_first(self) -> "HttpFile":
        """The file at `url` itself. Raises StreamerError when it cannot be had."""
        file = self._file(self._url)
        file.fill()
        if self.error is not None:
            raise self.error
        return file

    def open(self, url: str, flags: int = 1, options: dict[str, str] | None = None) -> "HttpFile":
        """What FFmpeg calls `io_open`: a file named by a playlist."""
        options = options or {}
        encrypted = url.startswith(("crypto+", "crypto:"))
        target = url[len("crypto+") :] if encrypted else url
        if flags & 2 or not target.startswith(("http://", "https://")):
            self.failed(_not_allowed(self._shown, target))
            return HttpFile(self, "")
        if encrypted:
            return _Decrypted(self, target, options.get("key", ""), options.get("iv", ""))
        return self._file(target)

    def close(self) -> None:
        """Hang up."""
        for file in self._files:
            file.close()
        self._client.close()

    def failed(self, error: StreamerError) -> None:
        """Remember what went wrong: of a recording the first thing, of a live stream the last."""
        forbidden = self.error is not None and self.error.code is ErrorCode.STREAM_URL_FORBIDDEN
        if self.error is None or (self._live and not forbidden):
            self.error = error

    def succeeded(self) -> None:
        """A live stream goes on: what went wrong before does not matter any more."""
        if self._live and self.error and self.error.code is not ErrorCode.STREAM_URL_FORBIDDEN:
            self.error = None

    def request(self, url: str, start: int) -> httpx.Response:
        """Ask for `url` from byte `start` on.

        Raises StreamerError, for a status that is none of success too.
        """
        parts, own = urlsplit(url), urlsplit(self._url)
        mine = (parts.scheme, parts.netloc) == (own.scheme, own.netloc)
        headers = {"Range": f"bytes={start}-"}
        try:
            request = self._client.build_request("GET", url, headers=headers)
            response = self._client.send(
                request, stream=True, auth=self._login if mine and self._login else None
            )
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            if isinstance(error, httpx.RemoteProtocolError):
                raise source_errors.not_http(self._named(url)) from None
            raise self.explain(error, url) from None
        if response.status_code == 416:  # nothing there any more: the end
            return response
        if not response.is_success:
            response.close()
            raise source_errors.http_refused(self._named(url), response.status_code)
        return response

    def explain(self, error: Exception, url: str) -> StreamerError:
        """What an exception of httpx means; its own text may hold the whole URL."""
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
        """Whether what breaks off is lost: a recording is asked for again from there on."""
        return self._live

    def _named(self, url: str) -> str:
        return self._shown if url == self._url else redact(url)

    def _file(self, url: str) -> "HttpFile":
        file = HttpFile(self, url)
        self._files = [*(f for f in self._files if not f.closed), file]
        return file


class HttpFile:
    """A file over http(s) as FFmpeg reads it; what goes wrong ends it, and the opener knows why."""

    def __init__(self, opener: HttpOpener, url: str) -> None:
        self._opener = opener
        self.name = url
        """Where it is, after redirects: what a playlist names is relative to it."""
        self.closed = not url
        self._response: httpx.Response | None = None
        self._chunks: Iterator[bytes] = iter(())
        self._chunk = b""
        self._offset = 0  # in the chunk
        self._at = 0  # position of the chunk's end
        self._position = 0
        self._size: int | None = None
        self._ranges = False

    def fill(self) -> bytes:
        """Open it, if it is not; what has come and was not read yet."""
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
                if not self._may_try_again(attempts):
                    self._fail(error)
            except httpx.HTTPError as error:
                attempts += 1
                self._hang_up()
                if not self._may_try_again(attempts):
                    self._fail(self._opener.explain(error, self.name))
        return self._chunk[self._offset :]

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, as soon as there are any; none at the end."""
        data = self.fill()[:size]
        self._offset += len(data)
        self._position += len(data)
        return data

    def seekable(self) -> bool:
        """Whether the server gives parts of the file."""
        self.fill()
        return self._ranges

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place; it is asked for when it is read. -1 when it is not known where that is."""
        base = {0: 0, 1: self._position, 2: self._size}.get(whence & 0xFF)
        if base is None or base + offset < 0:
            return -1
        target = base + offset
        ahead = target - self._position
        if 0 <= ahead <= len(self._chunk) - self._offset:
            self._offset += ahead
        elif not (self._response is not None and 0 < ahead <= _SKIP and self._skip(ahead)):
            self._hang_up()
        self._position = target
        return target

    def tell(self) -> int:
        """Where the next byte is read."""
        return self._position

    def close(self) -> None:
        """Hang up; nothing can be read afterwards."""
        self._hang_up()
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
            raise source_errors.broke_off(redact(self.name))  # it would begin anew
        self._ranges = partial or response.headers.get("accept-ranges") == "bytes"
        if self._size is None:
            self._size = _size_of(response)
        self._opener.succeeded()
        self.name = str(response.url)
        self._response, self._at = response, self._position
        self._chunks = response.iter_raw() if response.status_code != 416 else iter(())

    def _may_try_again(self, attempts: int) -> bool:
        return self._position > 0 and not self._opener.live and attempts < _ATTEMPTS

    def _fail(self, error: StreamerError) -> None:
        self._opener.failed(error)
        self.close()

    def _hang_up(self) -> None:
        response, self._response = self._response, None
        self._chunk, self._offset, self._chunks = b"", 0, iter(())
        if response is not None:
            response.close()


class _Decrypted(HttpFile):
    """A segment in AES-128-CBC, with a key that FFmpeg has fetched by the same opener."""

    def __init__(self, opener: HttpOpener, url: str, key: str, iv: str) -> None:
        super().__init__(opener, url)
        self._key, self._iv = bytes.fromhex(key), bytes.fromhex(iv)
        self._plain: bytes | None = None

    def fill(self) -> bytes:
        """Fetch and decrypt it; what was not read yet."""
        if self._plain is None:
            self._plain = self._decrypt()
        return self._plain[self._position :]

    def seekable(self) -> bool:
        """It lies in memory."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
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
        f"{source} refers to something that may not be opened ({kind}): a playlist or a redirect "
        "on the network may lead to http:// and https:// only.",
    )
