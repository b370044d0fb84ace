"""The web page as it is served: its files, who may read them, and what they cost."""

import gzip
import hashlib
import json
import re
from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import urljoin

import pytest
from fastapi.testclient import TestClient

from streamer.api import page
from streamer.api.app import create_app
from streamer.service import Service
from streamer.settings import Settings

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
VENDOR = page.WEB / "vendor"

MAX_FIRST_LOAD = 120_000
"""Bytes, compressed, of all that the first address loads."""


@pytest.fixture
def stranger(settings: Settings) -> Iterator[TestClient]:
    """A browser without a key, of an installation that has keys."""
    client = Service(settings.model_copy(update={"api_keys": ["s3cret"]}))
    with TestClient(create_app(client), base_url="http://streamer.example") as opened:
        yield opened


def loaded(html: str) -> list[str]:
    """The addresses that a document loads."""
    return re.findall(r'(?:src|href)="(/[^"]+)"', html)


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/streams/yard", "/incidents", "/incidents/inc_1", "/search?q=car", "/ask"),
        *("/attach", "/system", "/login"),
    ],
)
def test_each_address_is_the_page_for_a_browser_and_nothing_for_a_program(
    api: TestClient, path: str
) -> None:
    shown = api.get(path, headers=BROWSER)
    assert shown.status_code == 200
    assert shown.headers["content-type"] == "text/html; charset=utf-8"
    assert shown.headers["cache-control"] == "no-cache"

    refused = api.get(path, headers={"Accept": "*/*"})
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "NOT_FOUND"


def test_a_browser_without_a_key_gets_the_page_and_no_data(stranger: TestClient) -> None:
    html = stranger.get("/", headers=BROWSER)

    assert html.status_code == 200
    assert all(stranger.get(path).status_code == 200 for path in loaded(html.text))
    for path in ("/v1/session", "/v1/streams", "/v1/results", "/v1/incidents", "/metrics"):
        assert stranger.get(path).status_code == 401, path


def test_nothing_outside_the_page_is_served(stranger: TestClient) -> None:
    base = f"/static/{page.load_page().version}"
    for path in ("/../api/auth.py", "/%2e%2e/api/auth.py", "/index.html", "/vendor/VENDOR.json"):
        assert stranger.get(base + path).status_code in (401, 404), path


def test_files_are_kept_for_ever_and_those_of_another_release_are_not_found(
    api: TestClient,
) -> None:
    html = api.get("/", headers=BROWSER)
    script = next(path for path in loaded(html.text) if path.endswith("/src/main.js"))

    file = api.get(script)
    assert "immutable" in file.headers["cache-control"]
    assert file.headers["x-content-type-options"] == "nosniff"
    assert file.headers["content-encoding"] == "gzip"
    plain = api.get(script, headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.content == file.content == (page.WEB / "src" / "main.js").read_bytes()
    version = page.load_page().version
    assert api.get(script.replace(version, "0" * len(version))).status_code == 404
    # and the document is sent again only when it has changed
    again = api.get("/", headers=BROWSER | {"If-None-Match": html.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_the_policy_lets_nothing_run_but_the_files_and_the_import_map(api: TestClient) -> None:
    html = api.get("/", headers=BROWSER)
    policy = dict(
        part.split(" ", 1) for part in html.headers["content-security-policy"].split("; ")
    )

    (inline,) = re.findall(r"<script type=\"importmap\">(.*?)</script>", html.text, re.DOTALL)
    digest = b64encode(hashlib.sha256(inline.encode()).digest()).decode()
    assert policy["script-src"] == f"'self' 'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert policy["media-src"] == "'self' blob:"  # live video, which the page puts together
    assert not {"'unsafe-inline'", "'unsafe-eval'", "*"} & set(" ".join(policy.values()).split())
    assert " style=" not in html.text
    # every file of the map exists
    for path in json.loads(inline)["imports"].values():
        assert api.get(path).status_code == 200, path


def test_the_first_load_is_small(api: TestClient) -> None:
    html = api.get("/", headers=BROWSER)
    sizes = {path: len(gzip.compress(api.get(path).content, 9)) for path in loaded(html.text)}
    assert len(sizes) > 20  # without a build step, each module is a file
    assert not any("uplot" in path for path in sizes)
    assert sum(sizes.values()) + len(gzip.compress(html.content)) <= MAX_FIRST_LOAD


STATIC_IMPORT = re.compile(
    r"""(?:^|[;}])\s*(?:import|export)\s*(?:[\w{},*$\s]*?\bfrom\s*)?["']([^"']+)["']""",
    re.MULTILINE,
)

PAGES = {
    "/": "wall",
    "/streams/yard": "stream",
    "/incidents": "incidents",
    "/incidents/inc_1": "incidents",
    "/search": "search",
    "/ask": "ask",
    "/attach": "attach",
    "/system": "system",
    "/login": "login",
}


@pytest.mark.parametrize("path", PAGES)
def test_a_document_names_every_module_of_its_first_picture_and_no_other(
    api: TestClient, path: str
) -> None:
    html = api.get(path, headers=BROWSER).text
    base = f"/static/{page.load_page().version}/"
    (inline,) = re.findall(r"<script type=\"importmap\">(.*?)</script>", html, re.DOTALL)
    imports = json.loads(inline)["imports"]
    named = set(re.findall(r'<link rel="modulepreload" href="([^"]+)">', html))

    entries = {*re.findall(r'<script type="module"[^>]* src="([^"]+)"', html)}
    entries.add(f"{base}src/pages/{PAGES[path]}.js")
    needed, unread = set(entries), list(entries)
    while unread:
        module = unread.pop()
        for name in STATIC_IMPORT.findall(api.get(module).text):
            address = imports.get(name) or urljoin(module, name)
            if address not in needed:
                needed.add(address)
                unread.append(address)

    assert named == needed
    assert len(re.findall("modulepreload", html)) == len(named)


def test_all_but_the_login_show_the_frame_of_the_page_before_their_modules_are_there(
    api: TestClient,
) -> None:
    for path in PAGES:
        html = api.get(path, headers=BROWSER).text
        assert ('class="side"' in html) == (path != "/login"), path
        assert "{{" not in html


def test_every_module_is_named_by_a_file_that_exists() -> None:
    for script in page.WEB.glob("src/**/*.js"):
        for name in re.findall(r"""(?:from|import\()\s*["'](\.[^"']+)["']""", script.read_text()):
            assert (script.parent / name).is_file(), f"{script}: {name}"


def test_nothing_of_the_page_comes_from_elsewhere() -> None:
    files = [*page.WEB.glob("src/**/*.js"), *page.WEB.glob("css/*.css"), page.WEB / "index.html"]
    for path in files:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"""(?:src|href|import|url|fetch)\W{1,3}(?:https?:)?//""", text), path


def test_what_is_vendored_is_what_its_authors_published() -> None:
    vendored = json.loads((VENDOR / "VENDOR.json").read_text())
    named: dict[str, str] = {}
    for package in vendored:
        assert {"name", "version", "licence", "source"} <= package.keys()
        named |= package["files"]
    assert set(named) == {path.name for path in VENDOR.iterdir()} - {"VENDOR.json"}
    for name, digest in named.items():
        assert hashlib.sha256((VENDOR / name).read_bytes()).hexdigest() == digest, name
