"""What a browser asks for and computes until the wall shows its first picture.

The rounds of requests, and the CPU time of the page's main thread, do not depend on what else the
machine does: `benchmarks/web.py` measures the time.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from streamer.local.redis_server import EmbeddedServer
from streamer.settings import Settings
from tests.support.browser import MAX_SHIFT, main_thread_tasks, open_page
from tests.support.page_service import PageService

if TYPE_CHECKING:
    from playwright.sync_api import Browser, CDPSession, Page

pytestmark = pytest.mark.slow

MAX_FILES = 36
"""Files of the page until its first picture."""

MAX_TASK = 0.15
"""CPU seconds of one task, on a machine whose cores are shared: a third of that without."""

MAX_TASKS = 0.8
"""CPU seconds of all tasks; about 0.2 on a quiet machine."""

NO_OTHERS = """
const later = setTimeout;
window.setTimeout = (run, ms, ...given) => (ms === 3000 ? 0 : later(run, ms, ...given));
"""
"""Keeps away the files of other pages, which follow three seconds after the first has its data."""

PICTURE = "() => [...document.querySelectorAll('.tile canvas')].some((each) => each.width > 16)"


@pytest.fixture(scope="module")
def service(browser: "Browser", tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageService]:
    folder = tmp_path_factory.mktemp("first-picture")
    with EmbeddedServer(folder / "redis", persistent=False, max_memory=64 * 2**20) as server:
        settings = Settings(redis_url=server.url, data_dir=folder / "data", log_level="error")
        with PageService(settings) as service:
            camera = service.camera("yard")
            camera.show()
            camera.caption("A red car turns into the yard.", frames=1)
            yield service


@pytest.fixture
def page(browser: "Browser", service: PageService) -> "Iterator[Page]":
    with open_page(browser, service.url, expected="/readyz") as opened:
        opened.add_init_script(NO_OTHERS)
        yield opened


class Requests:
    """What a page asks for, in order: each with what made the browser ask."""

    def __init__(self, page: "Page") -> None:
        self.found: list[tuple[str, str]] = []
        self.sockets = 0
        devtools: CDPSession = page.context.new_cdp_session(page)
        devtools.on("Network.requestWillBeSent", self._sent)
        devtools.on("Network.webSocketCreated", self._opened)
        devtools.send("Network.enable")

    def _sent(self, event: dict[str, Any]) -> None:
        path = urlsplit(event["request"]["url"]).path
        self.found.append((path, event["initiator"]["type"]))

    def _opened(self, _: dict[str, Any]) -> None:
        self.sockets += 1

    def of(self, *initiators: str) -> list[str]:
        """Return the paths of those that were made by one of `initiators`."""
        return [path for path, initiator in self.found if initiator in initiators]


def test_no_file_waits_for_another_and_no_call_for_the_last_file(
    page: "Page", service: PageService
) -> None:
    requests = Requests(page)
    page.goto("/", wait_until="commit")
    page.wait_for_function(PICTURE)

    # the document names all files, so that they are asked for in one round
    files = {path for path in requests.of("parser", "preload", "other") if path != "/"}
    assert all(path.startswith("/static/") for path in files)
    assert 20 < len(files) <= MAX_FILES
    # scripts only call the API: who asks, then all that the wall shows at once
    calls = requests.of("script")
    assert [each for each in calls if each.endswith((".js", ".mjs"))] == []
    assert calls[:1] == ["/v1/session"]
    assert sorted(calls[1:4]) == ["/v1/incidents", "/v1/results", "/v1/streams"]
    assert requests.sockets == 1


def test_the_calls_begin_while_modules_of_the_page_are_still_on_their_way(
    page: "Page", service: PageService
) -> None:
    # given a wall whose own module does not arrive
    held = []
    page.route("**/src/pages/wall.js", lambda route: held.append(route))

    # when it is opened, then all that it shows arrives
    with page.expect_response("**/v1/results*"):
        page.goto("/", wait_until="commit")
    assert len(held) == 1

    # and the frame of the page is there
    assert page.locator(".side").inner_text() == "NVILA Streamer"
    held[0].continue_()
    page.wait_for_function(PICTURE)
    assert page.evaluate("window.layoutShift ?? 0") <= MAX_SHIFT


def test_the_first_picture_takes_little_of_the_main_thread(
    browser: "Browser", page: "Page", service: PageService
) -> None:
    categories = ["-*", "disabled-by-default-devtools.timeline"]
    browser.start_tracing(page=page, categories=categories)
    page.goto("/", wait_until="commit")
    page.wait_for_function(PICTURE)
    tasks = main_thread_tasks(browser.stop_tracing())

    assert len(tasks) > 100
    assert max(tasks) < MAX_TASK
    assert sum(tasks) < MAX_TASKS
