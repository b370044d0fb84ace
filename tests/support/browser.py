"""A browser for tests of the web page: Debian's Chromium, driven by Playwright.

Console errors, uncaught errors and violations of the content security policy fail the test.
Pictures go to the folder of the environment variable PAGE_SCREENSHOTS, if it is set.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

CHROMIUM = shutil.which("chromium")

DESKTOP = {"width": 1440, "height": 900}
PHONE = {"width": 390, "height": 844}

MAX_SHIFT = 0.002
"""Layout shift of a page: nothing that anybody sees. Up to 0.1 counts as good."""

_SHIFTS = """
new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) {
    if (!entry.hadRecentInput) window.layoutShift = (window.layoutShift ?? 0) + entry.value;
  }
}).observe({ type: "layout-shift", buffered: true });
document.addEventListener("securitypolicyviolation", (event) => {
  console.error(`content security policy: ${event.violatedDirective} ${event.blockedURI}`);
});
"""


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    """A browser that the tests of a module share: while it runs, the thread has an event loop."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        yield opened
        opened.close()


@contextmanager
def open_page(
    browser: "Browser",
    url: str,
    *,
    phone: bool = False,
    dark: bool = False,
    expected: str = "$^",
) -> "Iterator[Page]":
    """Open a window. `expected` is a pattern of console errors that the test provokes."""
    context = browser.new_context(
        base_url=url,
        viewport=PHONE if phone else DESKTOP,  # type: ignore[arg-type]
        is_mobile=phone,
        has_touch=phone,
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        service_workers="block",
    )
    context.add_init_script(_SHIFTS)
    page = context.new_page()
    page.set_default_timeout(150_000)
    problems: list[str] = []

    def note(message: "ConsoleMessage") -> None:
        if message.type != "error":
            return
        text = f"{message.text} {message.location.get('url', '')}"
        if not re.search(expected, text):
            problems.append(text)

    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(f"uncaught: {error}"))
    try:
        yield page
    finally:
        context.close()
    assert not problems, problems


_COMPLETE = """
() => {
  const visible = (each) => {
    const { top, bottom, width } = each.getBoundingClientRect();
    return width > 0 && bottom > 0 && top < innerHeight;
  };
  const shown = (selector) => [...document.querySelectorAll(selector)].filter(visible);
  return shown("img").every((each) => each.complete) && !shown(".skeleton, .shot:empty").length
    && shown(".picture:not(:has(.note)) > canvas").every((each) => each.width > 16);
}
"""


def take_picture(page: "Page", name: str, *, complete: bool = True) -> None:
    """Store a picture of what the window shows, where a folder is set for it.

    With `complete`, wait until everything has arrived that the window shows.
    """
    folder = os.environ.get("PAGE_SCREENSHOTS")
    if folder:
        if complete:
            page.wait_for_function(_COMPLETE)
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=Path(folder) / f"{name}.png")


def serious_problems(page: "Page") -> list[str]:
    """Return what axe-core finds serious or critical on the page."""
    from axe_playwright_python.sync_playwright import Axe

    found: dict[str, Any] = Axe().run(page).response
    return [
        f"{each['id']}: {each['help']}: {node['html'][:200]}"
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]


def main_thread_tasks(trace: bytes) -> list[float]:
    """Return the CPU seconds of each task of the page's main thread in a trace of the browser."""
    events = json.loads(trace)["traceEvents"]
    main = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    return [
        event["tdur"] / 1e6
        for event in events
        if event["name"] == "RunTask" and (event["pid"], event["tid"]) in main and "tdur" in event
    ]
