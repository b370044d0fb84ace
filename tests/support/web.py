"""A web server with faults (partial files, logins, redirects, broken connections), and a reader."""

import contextlib
import hashlib
import threading
import time
from base64 import b64encode
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote, urlsplit

from streamer.media.access_policy import AccessPolicy
from streamer.media.source import Source
from tests.support.videos import number_of

HERE = AccessPolicy(hosts=("127.0.0.1",))
"""Policy that permits sources on this machine."""


def numbers(url: str, **arguments: object) -> list[int]:
    """Return the numbers in all pictures of a recording; `arguments` are those of `Source`."""
    options: dict = {"live": False, "access": HERE, "read_timeout": 5, **arguments}
    with Source(url, **options) as source:
        return [number_of(frame.image.to_ndarray(format="rgb24")) for frame in source]


class Site:
    """Serves a folder over HTTP on loopback.

    `redirects` maps paths to where they lead; `digest` or `basic` is (user, password) that all
    of it asks for; `cut` maps paths to how many bytes each answer gives before the line breaks;
    `stall` names paths that are accepted and never answered, `slow` gives pieces and the seconds
    between them.
    """

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.folder = folder
        self.ranges = ranges
        self.redirects: dict[str, str] = {}
        self.cut: dict[str, int] = {}
        self.stall: set[str] = set()
        self.slow: dict[str, tuple[list[bytes], float]] = {}
        self.basic: tuple[str, str] | None = None
        self.digest: tuple[str, str] | None = None
        self.requests: Counter[str] = Counter()
        self.logins: list[tuple[str, str]] = []
        self._halt = threading.Event()

    def __enter__(self) -> Self:
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site._answer(self)

            def log_message(self, format: str, *args: object) -> None:
                """Log nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        self.address = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.address}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._halt.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(60)

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.requests[path] += 1
        if authorization := handler.headers["Authorization"]:
            self.logins.append((handler.headers["Host"], authorization))
        if path in self.stall:
            self._halt.wait(120)
            return
        if path in self.slow:
            self._trickle(handler, *self.slow[path])
        elif challenge := self._challenge(handler):
            self._head(handler, 401, {"WWW-Authenticate": challenge})
        elif path in self.redirects:
            self._head(handler, 302, {"Location": self.redirects[path]})
        else:
            self._file(handler, path)

    def _challenge(self, handler: BaseHTTPRequestHandler) -> str | None:
        given = handler.headers["Authorization"] or ""
        if self.basic is not None:
            expected = "Basic " + b64encode(":".join(self.basic).encode()).decode()
            return None if given == expected else 'Basic realm="x"'
        if self.digest is None:
            return None
        fields = dict(
            part.strip().replace('"', "").split("=", 1)
            for part in given.removeprefix("Digest ").split(",")
            if "=" in part
        )
        user, password = self.digest
        first = _md5(f"{user}:x:{password}")
        second = _md5(f"GET:{fields.get('uri')}")
        middle = ":".join(fields.get(key, "") for key in ("nonce", "nc", "cnonce", "qop"))
        right = fields.get("response") == _md5(f"{first}:{middle}:{second}")
        return None if right else f'Digest realm="x", nonce="{time.time_ns()}", qop="auth"'

    def _file(self, handler: BaseHTTPRequestHandler, path: str) -> None:
        file = self.folder / path.lstrip("/")
        if not file.is_file():
            self._head(handler, 404, {})
            return
        data = file.read_bytes()
        start = 0
        headers: dict[str, Any] = {}
        wanted = handler.headers["Range"]
        partial = self.ranges and wanted is not None
        if partial:
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            if start >= len(data):
                self._head(handler, 416, {})
                return
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        headers["Content-Length"] = len(body)
        self._head(handler, 206 if partial else 200, headers)
        with contextlib.suppress(OSError):  # it may have been enough for the client
            handler.wfile.write(body[: self.cut.get(path, len(body))])

    def _trickle(self, handler: BaseHTTPRequestHandler, pieces: list[bytes], pause: float) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        handler.end_headers()
        with contextlib.suppress(OSError):
            for piece in pieces:
                handler.wfile.write(piece)
                if self._halt.wait(pause):
                    break

    @staticmethod
    def _head(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, Any]) -> None:
        handler.send_response(status)
        headers.setdefault("Content-Length", 0)
        for name, value in headers.items():
            handler.send_header(name, str(value))
        handler.end_headers()


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
