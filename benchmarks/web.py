"""Measure the web page in a browser: first load, first picture, CPU of the API, messages, memory.

    .venv/bin/python benchmarks/web.py [--cameras 12] [--seconds 30] [--loads 5] [--json]

Starts a local installation in a temporary folder and attaches a rendered street, served over RTSP
on loopback, as each of the cameras: `--cameras 1` is what `streamer demo --keep` leaves. Debian's
Chromium (Playwright, of the extra `dev`), which has been open for a moment, opens the page: each
load with an empty cache. The CPU time by second is that of the API process, less what it needs
without a viewer. Times of a load count on a machine that does nothing else: see the load average.
"""

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from playwright.sync_api import Browser, Page, ViewportSize, sync_playwright
from report import publish
from rtsp_sender import RtspSender

from nvila_core.demo.video import StreetVideo, write_video
from streamer.domain.sampling import Sampling
from streamer.domain.stream import StreamState
from streamer.local.installation import Installation
from streamer.service import CAPTION_PROMPT, Service
from streamer.settings import Settings

SEED = 2_000_000_103
SETTLED = 2000
"""Milliseconds after which a new window of the browser is idle."""

VIEWPORT: ViewportSize = {"width": 1440, "height": 900}

MOMENTS = """
window.moments = {};
const note = (name) => (window.moments[name] ??= performance.now());
document.addEventListener("playing", () => note("video"), true);
new MutationObserver((changes) => {
  for (const { target } of changes) {
    if (target.tagName === "CANVAS" && target.width > 16) note("picture");
  }
}).observe(document, { subtree: true, attributes: true, attributeFilter: ["width"] });
"""
"""When the first picture was drawn, and a video began to play: milliseconds after the start."""


@dataclass
class Traffic:
    """What a page was sent: requests and bytes by kind, and messages of its socket."""

    requests: Counter[str] = field(default_factory=Counter)
    bytes: Counter[str] = field(default_factory=Counter)
    messages: Counter[str] = field(default_factory=Counter)

    def watch(self, page: Page) -> None:
        """Count from now on."""
        devtools = page.context.new_cdp_session(page)
        kinds: dict[str, str] = {}

        def begun(event: dict[str, Any]) -> None:
            path = event["request"]["url"].split("/", 3)[3]
            kinds[event["requestId"]] = "api" if path.startswith("v1/") else "page"

        def ended(event: dict[str, Any]) -> None:
            kind = kinds.get(event["requestId"], "page")
            self.requests[kind] += 1
            self.bytes[kind] += int(event["encodedDataLength"])

        def heard(event: dict[str, Any]) -> None:
            response = event["response"]
            is_text, length = response["opcode"] == 1, len(response["payloadData"])
            kind = "events" if is_text else "pictures"
            self.messages[kind] += 1
            self.bytes[kind] += length if is_text else 3 * length // 4  # it comes as base64

        devtools.on("Network.requestWillBeSent", begun)
        devtools.on("Network.loadingFinished", ended)
        devtools.on("Network.webSocketFrameReceived", heard)
        devtools.send("Network.enable")


def first_loads(
    browser: Browser, url: str, path: str, api: psutil.Process, loads: int
) -> dict[str, float]:
    """Return the medians of some first loads of a page, up to its first picture or its video."""
    found = []
    for _ in range(loads):
        context = browser.new_context(base_url=url, viewport=VIEWPORT)
        context.add_init_script(MOMENTS)
        page = context.new_page()
        traffic = Traffic()
        traffic.watch(page)
        page.wait_for_timeout(SETTLED)
        busy, api_cpu, browser_cpu = os.getloadavg()[0], cpu_of(api), cpu_of_browser()
        page.goto(path, wait_until="commit")
        page.wait_for_function("() => window.moments.picture ?? window.moments.video", polling=50)
        api_cpu, browser_cpu = cpu_of(api) - api_cpu, cpu_of_browser() - browser_cpu
        paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
        each = {
            "files": traffic.requests["page"],
            "files_kb": traffic.bytes["page"] / 1000,
            "calls": traffic.requests["api"],
            "calls_kb": traffic.bytes["api"] / 1000,
            "first_paint_ms": float(paint),
            "picture_ms": float(page.evaluate("window.moments.picture ?? window.moments.video")),
            "load_browser_cpu_ms": 1000 * browser_cpu,
            "load_api_cpu_ms": 1000 * api_cpu,
            "load_average": busy,
        }
        if path != "/":
            page.wait_for_function("() => window.moments.video", timeout=60_000)
            each["video_ms"] = float(page.evaluate("window.moments.video"))
        found.append(each)
        context.close()
    return {name: statistics.median(each[name] for each in found) for name in found[0]}


def look(
    browser: Browser, url: str, path: str, api: psutil.Process, seconds: float
) -> dict[str, float]:
    """Keep a page open, and return what it and the API needed, by second."""
    context = browser.new_context(base_url=url, viewport=VIEWPORT)
    page = context.new_page()
    page.goto(path)
    page.wait_for_timeout(5000)  # the load is no part of it
    traffic = Traffic()
    traffic.watch(page)
    heap = heap_of(page)
    began, cpu = time.monotonic(), cpu_of(api)
    page.wait_for_timeout(1000 * seconds)
    elapsed = time.monotonic() - began
    found = {
        "api_cpu_ms": 1000 * (cpu_of(api) - cpu) / elapsed,
        "events": traffic.messages["events"] / elapsed,
        "pictures": traffic.messages["pictures"] / elapsed,
        "kilobytes": (traffic.bytes["events"] + traffic.bytes["pictures"]) / elapsed / 1000,
        "heap_mb": heap / 1e6,
        "heap_after_mb": heap_of(page) / 1e6,
    }
    context.close()
    return found


def heap_of(page: Page) -> float:
    """Return the bytes in use of a page's heap, without garbage."""
    devtools = page.context.new_cdp_session(page)
    devtools.send("HeapProfiler.collectGarbage")
    used: dict[str, Any] = devtools.send("Runtime.getHeapUsage")
    devtools.detach()
    return float(used["usedSize"])


def cpu_of(process: psutil.Process) -> float:
    """Return the CPU seconds of a process so far."""
    times = process.cpu_times()
    return float(times.user + times.system)


def cpu_of_browser() -> float:
    """Return the CPU seconds of all processes of the browser so far."""
    seconds = 0.0
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            if "chromium" in process.name():
                seconds += cpu_of(process)
    return seconds


def api_of(installation: Installation) -> psutil.Process:
    """Return the process of the API: it listens on the port of the installation."""
    port = int(installation.api_url.rsplit(":", 1)[1])
    for process in psutil.Process().children(recursive=True):
        if any(
            each.laddr.port == port and each.status == psutil.CONN_LISTEN
            for each in process.net_connections()
        ):
            return process
    raise SystemExit(f"No process listens on port {port}.")


def attach(client: Service, url: str, cameras: int) -> None:
    """Attach the cameras, and wait until all of them run."""
    for number in range(1, cameras + 1):
        client.attach(
            url,
            f"camera-{number:02}",
            sampling=Sampling(fps=1.0),
            watches=[client.watch(CAPTION_PROMPT)],
            probe=False,
        )
    deadline = time.monotonic() + 600
    while any(stream.state is not StreamState.RUNNING for stream in client.streams()):
        if time.monotonic() > deadline:
            raise SystemExit("The cameras did not start: run `streamer demo` to see what fails.")
        time.sleep(0.5)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=30.0, help="for which a page is open")
    parser.add_argument(
        "--loads", type=int, default=5, help="first loads, of which the median counts"
    )
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("Chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "videos" / "street.mp4"
        video.parent.mkdir()
        write_video(video, StreetVideo(SEED, 60.0))
        settings = Settings(data_dir=Path(folder) / "data", api_port=0)
        with RtspSender(video) as camera, Installation(settings) as installation:
            installation.start()
            while not installation.ready():
                installation.poll()
                time.sleep(0.1)
            with Service(installation.settings) as client:
                attach(client, camera.url, options.cameras)
            api, url = api_of(installation), installation.api_url
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
                )
                wall = first_loads(browser, url, "/", api, options.loads)
                stream = first_loads(browser, url, "/streams/camera-01", api, options.loads)
                before, began = cpu_of(api), time.monotonic()
                time.sleep(options.seconds)
                alone = 1000 * (cpu_of(api) - before) / (time.monotonic() - began)
                walls = look(browser, url, "/", api, options.seconds)
                streams = look(browser, url, "/streams/camera-01", api, options.seconds)
                browser.close()
    for each in (walls, streams):
        each["api_cpu_ms"] -= alone
    found = {"benchmark": "web", "cameras": options.cameras, "api_alone_cpu_ms": alone}
    found |= {"wall": wall | walls, "stream": stream | streams}
    pages = (wall, walls), (stream, streams)
    rows = [
        (label, *((loaded | kept).get(name, "") for loaded, kept in pages))
        for name, label in LABELS.items()
    ]
    publish(found, ("", f"wall of {options.cameras}", "one camera, live video"), rows)


LABELS = {
    "files": "files of the page",
    "files_kb": "their kB, compressed, with headers",
    "calls": "calls of the API",
    "calls_kb": "their kB",
    "first_paint_ms": "first paint, ms",
    "picture_ms": "first live picture, ms",
    "video_ms": "live video plays, ms",
    "load_browser_cpu_ms": "CPU of the browser until then, ms",
    "load_api_cpu_ms": "CPU of the API until then, ms",
    "load_average": "load average of the machine before",
    "api_cpu_ms": "CPU of the API, ms a second",
    "events": "events a second",
    "pictures": "pictures or pieces of video a second",
    "kilobytes": "kB a second",
    "heap_mb": "heap of the page, MB",
    "heap_after_mb": "heap of the page at the end, MB",
}


if __name__ == "__main__":
    main()
