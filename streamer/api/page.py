"""The web page: its HTML for browsers, and the files that it loads, from memory.

The files are those of `streamer/web/`, as they are: there is no build step. Their addresses have a
hash of all of them, so that browsers keep them until the next release and never mix two.

A module names those that it needs, so a browser that follows the names asks in several rounds.
Therefore the document of each address names all modules of its first picture, and no others.
"""

import gzip
import hashlib
import json
import posixpath
import re
from base64 import b64encode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

WEB = Path(__file__).parents[1] / "web"

STATIC_PATH = "/static"

_ROUTES = {
    "/": "wall",
    "/incidents": "incidents",
    "/search": "search",
    "/ask": "ask",
    "/attach": "attach",
    "/system": "system",
    "/login": "login",
}
_NESTED = {"/streams/": "stream", "/incidents/": "incidents"}
"""Addresses of the page, and the beginnings of those that name a stream or an incident; of each,
the module in `src/pages/` that shows it."""

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The files that are served; others, such as licences, stay in the package."""

_ALONE = "login"
"""Is shown without the frame of the page, which the others have before their modules are there."""

_ENTRIES = ("src/first.js", "src/main.js")
"""Modules that the document runs, in the order in which they are wanted."""

_IMPORT = re.compile(r"""(?:\bfrom|\bimport)\s*["']([\w@./-]+)["']""")
"""Names a module that is loaded before the one that names it; `import("…")` loads it later."""

_IMMUTABLE = "public, max-age=31536000, immutable"

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class Asset:
    """A file as it is sent: as it is, and compressed."""

    body: bytes
    zipped: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, body: bytes, media_type: str) -> "Asset":
        """Compress `body`."""
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        return cls(body, gzip.compress(body, 9, mtime=0), media_type, etag)

    def response(self, request: Request, headers: dict[str, str]) -> Response:
        """Return the file, or 304 if the caller has it."""
        headers = {
            "ETag": self.etag,
            "Vary": "Accept-Encoding",
            "X-Content-Type-Options": "nosniff",
            **headers,
        }
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        body = self.body
        if "gzip" in request.headers.get("accept-encoding", ""):
            body, headers["Content-Encoding"] = self.zipped, "gzip"
        return Response(body, media_type=self.media_type, headers=headers)


@dataclass(frozen=True)
class WebPage:
    """The page of one release.

    Attributes:
        version: hash of all its files, a part of their addresses.
        files: by their addresses.
        documents: the HTML of each module of `src/pages/`, by its name.
        policy: which scripts, styles and servers a browser may use for it.
    """

    version: str
    files: dict[str, Asset]
    documents: dict[str, Asset]
    policy: str


@cache
def load_page() -> WebPage:
    """Read the files of the page, once."""
    paths = sorted(path for path in WEB.rglob("*") if path.suffix in _MEDIA_TYPES)
    bodies = {path.relative_to(WEB).as_posix(): path.read_bytes() for path in paths}
    template, frame = ((WEB / name).read_text() for name in ("index.html", "frame.html"))
    digest = hashlib.sha256(f"{template}\0{frame}".encode())
    for name, body in bodies.items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(body).digest())
    version = digest.hexdigest()[:12]
    base = f"{STATIC_PATH}/{version}"
    html, frame = (text.replace("{{base}}", base) for text in (template, frame))
    (inline,) = re.findall(r"<script type=\"importmap\">(.*?)</script>", html, re.DOTALL)
    named = json.loads(inline)["imports"]
    imports = {name: address.removeprefix(f"{base}/") for name, address in named.items()}
    documents = {}
    for shown in {*_ROUTES.values(), *_NESTED.values()}:
        modules = modules_of(bodies, (*_ENTRIES, f"src/pages/{shown}.js"), imports)
        links = (f'<link rel="modulepreload" href="{base}/{name}">' for name in modules)
        document = html.replace("{{preloads}}", "\n    ".join(links))
        document = document.replace("{{frame}}", "" if shown == _ALONE else frame.strip())
        documents[shown] = Asset.of(document.encode(), "text/html; charset=utf-8")
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' 'sha256-{_sha256(inline)}'",
            "style-src 'self'",
            "img-src 'self'",
            "media-src 'self' blob:",  # live video, which the page puts together
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    )
    files = {
        f"{base}/{name}": Asset.of(body, _MEDIA_TYPES[Path(name).suffix])
        for name, body in bodies.items()
    }
    return WebPage(version, files, documents, policy)


def modules_of(
    bodies: Mapping[str, bytes], entries: Iterable[str], imports: Mapping[str, str]
) -> list[str]:
    """Return the paths of modules and of all that they need, each after those that it needs.

    `bodies` are the files by their paths, and `imports` the paths of modules that go by a name.
    """
    seen: set[str] = set()
    found: list[str] = []

    def visit(name: str) -> None:
        if name in seen:
            return
        seen.add(name)
        for needed in _IMPORT.findall(bodies[name].decode()):
            path = imports.get(needed) or posixpath.join(posixpath.dirname(name), needed)
            visit(posixpath.normpath(path))
        found.append(name)

    for entry in entries:
        visit(entry)
    return found


def _sha256(text: str) -> str:
    return b64encode(hashlib.sha256(text.encode()).digest()).decode()


def is_page_path(path: str) -> bool:
    """Return whether `path` is an address of the page or of a file of it.

    They need no key: they are the same in every installation, and contain nothing of it.
    """
    return path in _ROUTES or path.startswith((*_NESTED, f"{STATIC_PATH}/"))


async def show_page(request: Request) -> Response:
    """Return the page to a browser. Programs, which ask for no HTML, get 404."""
    if "text/html" not in request.headers.get("accept", ""):
        raise HTTPException(404)
    page = load_page()
    path = request.scope["path"]
    shown = _ROUTES.get(path) or next(
        shown for beginning, shown in _NESTED.items() if path.startswith(beginning)
    )
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": page.policy,
        "Referrer-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    }
    return page.documents[shown].response(request, headers)


for _path in (*_ROUTES, *(f"{path}{{name}}" for path in _NESTED)):
    router.add_api_route(_path, show_page, methods=["GET", "HEAD"])


class PageFiles:
    """ASGI middleware that sends the files of the page, before the routes are searched.

    A browser that opens the page asks for dozens at once, and its first picture waits for them.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a file of this release's page, or pass the request on."""
        file = load_page().files.get(scope["path"]) if scope["type"] == "http" else None
        if file is None or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
        else:
            response = file.response(Request(scope), {"Cache-Control": _IMMUTABLE})
            await response(scope, receive, send)
