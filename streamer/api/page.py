"""The web page: its HTML for browsers, and the files that it loads, from memory.

The files are those of `streamer/web/`, as they are: there is no build step. Their addresses have a
hash of all of them, so that browsers keep them until the next release and never mix two.
"""

import gzip
import hashlib
import re
from base64 import b64encode
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

WEB = Path(__file__).parents[1] / "web"

STATIC_PATH = "/static"

_ROUTES = ("/", "/incidents", "/search", "/ask", "/attach", "/system", "/login")
_NESTED = ("/streams/", "/incidents/")
"""Addresses of the page, and the beginnings of those that name a stream or an incident."""

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""The files that are served; others, such as licences, stay in the package."""

_LAZY = ("src/metrics.js", "src/pages/system.js", "src/ui/chart.js", "vendor/uplot")
"""Files that one page needs: they are loaded when it is opened."""

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
        files: by their path in `streamer/web/`.
        html: the document, the same at each address.
        policy: which scripts, styles and servers a browser may use for it.
    """

    version: str
    files: dict[str, Asset]
    html: Asset
    policy: str


@cache
def load_page() -> WebPage:
    """Read the files of the page, once."""
    paths = sorted(path for path in WEB.rglob("*") if path.suffix in _MEDIA_TYPES)
    bodies = {path.relative_to(WEB).as_posix(): path.read_bytes() for path in paths}
    template = (WEB / "index.html").read_text()
    digest = hashlib.sha256(template.encode())
    for name, body in bodies.items():
        digest.update(name.encode() + b"\0" + hashlib.sha256(body).digest())
    version = digest.hexdigest()[:12]
    base = f"{STATIC_PATH}/{version}"
    preloads = "\n    ".join(
        f'<link rel="modulepreload" href="{base}/{name}">'
        for name in bodies
        if name.endswith(("js", "mjs")) and not name.startswith(_LAZY)
    )
    html = template.replace("{{base}}", base).replace("{{preloads}}", preloads)
    inline = re.findall(r"<script type=\"importmap\">(.*?)</script>", html, re.DOTALL)
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in inline)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' {hashes}",
            "style-src 'self'",
            "img-src 'self'",
            "media-src 'self' blob:",  # live video, which the page puts together
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'self'",
            "frame-ancestors 'none'",
        )
    )
    files = {name: Asset.of(body, _MEDIA_TYPES[Path(name).suffix]) for name, body in bodies.items()}
    return WebPage(version, files, Asset.of(html.encode(), "text/html; charset=utf-8"), policy)


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
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": page.policy,
        "Referrer-Policy": "same-origin",
        "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    }
    return page.html.response(request, headers)


for _path in (*_ROUTES, *(f"{path}{{name}}" for path in _NESTED)):
    router.add_api_route(_path, show_page, methods=["GET", "HEAD"])


@router.api_route(f"{STATIC_PATH}/{{version}}/{{path:path}}", methods=["GET", "HEAD"])
async def get_static_file(version: str, path: str, request: Request) -> Response:
    """Return a file of this release's page."""
    page = load_page()
    if version != page.version or path not in page.files:
        raise HTTPException(404)
    return page.files[path].response(request, {"Cache-Control": _IMMUTABLE})
