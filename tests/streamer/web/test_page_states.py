"""What the web page shows when there is nothing, not yet anything, or something has failed."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from streamer.local.redis_server import EmbeddedServer
from streamer.settings import Settings
from tests.support.browser import open_page, serious_problems, take_picture
from tests.support.page_service import PageService

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

pytestmark = pytest.mark.slow

LOOKS = pytest.mark.parametrize(
    ("phone", "dark"), [(False, False), (True, True)], ids=["desktop-light", "phone-dark"]
)

MISSING = "/readyz|404"
"""Console errors: no worker runs, and an incident is asked for that does not exist."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, browser: "Browser") -> Iterator[PageService]:
    folder = tmp_path_factory.mktemp("states")
    with EmbeddedServer(folder / "redis", persistent=False, max_memory=None) as redis:
        settings = Settings(redis_url=redis.url, data_dir=folder / "data", log_level="error")
        with PageService(settings) as service:
            yield service


EMPTY = {
    "wall": ("/", "No camera is attached yet", "Attach a camera"),
    "stream": ("/streams/gone", "No such camera is attached", "Search its results"),
    "incidents": ("/incidents", "Nothing is open", "Show past ones"),
    "incidents-all": ("/incidents?show=all", "No incident yet", "Choose a camera"),
    "incident": ("/incidents/inc_0000000000000000", "There is no such incident", "All incidents"),
    "search": ("/search", "Nothing has been said yet", None),
    "search-nothing": ("/search?q=zebra", "Nothing was found", "Clear the search"),
    "ask": ("/ask", "There is no camera to ask", "Attach a camera"),
    "system": ("/system", "No worker runs", None),
}


@LOOKS
def test_an_empty_page_says_what_to_do_next(
    browser: "Browser",
    service: PageService,
    phone: bool,
    dark: bool,
    request: pytest.FixtureRequest,
) -> None:
    look = request.node.callspec.id
    with open_page(browser, service.url, phone=phone, dark=dark, expected=MISSING) as page:
        for name, (path, said, action) in EMPTY.items():
            page.goto(path)
            page.get_by_text(said).wait_for()
            if action is not None:
                page.locator("#main").get_by_text(action, exact=True).first.wait_for()
            take_picture(page, f"empty-{name}-{look}")
            assert serious_problems(page) == [], name


ROUTES = ("/", "/streams/gate", "/incidents", "/search?q=car", "/ask", "/attach", "/system")


def _name(path: str) -> str:
    return path.split("?")[0].strip("/").replace("/", "-") or "wall"


@LOOKS
def test_a_page_that_loads_shows_where_everything_will_be(
    browser: "Browser",
    service: PageService,
    phone: bool,
    dark: bool,
    request: pytest.FixtureRequest,
) -> None:
    look = request.node.callspec.id
    with open_page(browser, service.url, phone=phone, dark=dark) as page:
        page.route("**/v1/*", lambda route: None)  # the service takes its time
        for path in ROUTES:
            page.goto(path, wait_until="commit")
            page.get_by_role("heading", level=1).wait_for()
            page.wait_for_selector(".skeleton, .picture, input")
            take_picture(page, f"loading-{_name(path)}-{look}", complete=False)
            assert serious_problems(page) == [], path


FAILURE = json.dumps(
    {
        "error": {
            "code": "REDIS_AWAY",
            "message": "Redis does not answer: see `streamer status`.",
            "type": "server_error",
            "param": None,
            "request_id": "req_0",
        }
    }
)


def _fail(route: "Route") -> None:
    route.fulfill(status=503, content_type="application/json", body=FAILURE)


@LOOKS
def test_a_failure_gives_its_reason_and_a_way_on(
    browser: "Browser",
    service: PageService,
    phone: bool,
    dark: bool,
    request: pytest.FixtureRequest,
) -> None:
    look = request.node.callspec.id
    camera = service.camera("gate")
    camera.show()
    camera.caption("A red car turns into the yard.", frames=1)
    with open_page(browser, service.url, phone=phone, dark=dark, expected="503") as page:
        # all of it
        page.route("**/v1/streams?*", _fail)
        page.goto("/")
        page.get_by_text("The service does not answer").wait_for()
        page.get_by_text("Redis does not answer").wait_for()
        _look(page, f"failed-start-{look}")
        # then it comes back by itself
        page.unroute("**/v1/streams?*")
        page.wait_for_selector("[data-stream=gate]")
        # one part of it
        page.route("**/v1/results?*", _fail)
        page.route("**/v1/incidents?*", _fail)
        page.route("**/metrics", _fail)
        page.route("**/v1/queries", _fail)
        page.route("**/v1/probe", _fail)
        for path in ("/incidents", "/search?q=car", "/system"):
            page.goto(path)
            page.get_by_text("Redis does not answer").first.wait_for()
            page.get_by_role("button", name="Try again").wait_for()
            _look(page, f"failed-{_name(path)}-{look}")
        page.goto("/streams/gate")
        page.get_by_placeholder("Ask what this camera shows").fill("What happens?")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Ask again").wait_for()
        page.get_by_role("button", name="Try again").wait_for()
        _look(page, f"failed-stream-{look}")
        page.goto("/attach")
        page.get_by_label("Address").fill("rtsp://192.0.2.1/main")
        page.keyboard.press("Enter")
        page.get_by_text("Redis does not answer").first.wait_for()
        _look(page, f"failed-attach-{look}")
    service.client.detach("gate")


def _look(page: "Page", name: str) -> None:
    take_picture(page, name, complete=False)
    assert serious_problems(page) == [], name
