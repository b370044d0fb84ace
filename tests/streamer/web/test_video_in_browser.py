"""Live video in a browser: a real camera, a real ingest slot, the real API and page."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from streamer.local.redis_server import EmbeddedServer
from streamer.redis_client.connections import Connections
from streamer.settings import Settings
from tests.support.api_server import ApiServer
from tests.support.browser import open_page, take_picture
from tests.support.cameras import GstCamera, write_units
from tests.support.ingest_bench import Bench
from tests.support.page_service import PageService
from tests.support.videos import write_video

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PLAYING = "video.live.playing"

SERVICE_AWAY = "/readyz|net::ERR_|WebSocket"
"""Console errors of a page whose service is away."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageService]:
    folder = tmp_path_factory.mktemp("video")
    with EmbeddedServer(folder / "redis", persistent=False, max_memory=256 * 2**20) as server:
        settings = Settings(
            redis_url=server.url,
            data_dir=folder / "data",
            log_level="error",
            reconnect_cap=0.5,
        )
        with PageService(settings) as opened:
            yield opened


def plays(page: "Page", seconds: float) -> None:
    """Wait until the video is shown, and has played for so long."""
    page.locator(PLAYING).wait_for()
    at = page.locator(PLAYING).evaluate("(video) => video.currentTime")
    page.wait_for_function(
        "(until) => document.querySelector('video.live.playing')?.currentTime > until",
        arg=at + seconds,
    )


@pytest.mark.slow
def test_a_camera_that_browsers_do_not_play_is_shown_in_pictures_with_a_word(
    browser: "Browser", service: PageService, tmp_path: Path
) -> None:
    write_video(tmp_path / "v.mp4", codec="libx265", seconds=2, width=640, height=360)
    bench = Bench(service.settings, service.client.connections)
    with GstCamera(write_units([tmp_path / "v.mp4"], tmp_path / "v.units")) as camera:
        spec = bench.attach(camera.url, live=True, fps=5, name="yard")
        with bench.run(spec), open_page(browser, service.url, expected="/readyz") as page:
            page.goto("/streams/yard")
            page.get_by_text("Pictures, because this browser plays no H.265").wait_for()
            shown = "(width) => document.querySelector('.picture canvas').width === width"
            page.wait_for_function(shown, arg=640)
            take_picture(page, "stream-pictures-and-why")
            assert page.locator(PLAYING).count() == 0
            assert bench.context.video.numbers()["video_streams"] == 0


@pytest.mark.slow
def test_a_video_comes_back_by_itself_when_the_service_restarts(
    browser: "Browser", service: PageService, tmp_path: Path
) -> None:
    write_video(tmp_path / "v.mp4", seconds=2, width=320, height=240)
    with (
        Connections(service.settings) as connections,
        GstCamera(write_units([tmp_path / "v.mp4"], tmp_path / "v.units")) as camera,
        ExitStack() as window,
    ):
        # given a page that plays a camera
        bench = Bench(service.settings, connections)
        spec = bench.attach(camera.url, live=True, fps=1, name="dock")
        window.enter_context(bench.run(spec))
        with ApiServer(service.settings) as api:
            port = api.port
            page = window.enter_context(open_page(browser, api.url, expected=SERVICE_AWAY))
            page.goto("/streams/dock")
            plays(page, 1.0)
        # when the API is away, and comes back
        page.get_by_text("The page tries again by itself.").wait_for()
        with ApiServer(service.settings, port):
            page.get_by_text("The page tries again by itself.").wait_for(state="detached")
            plays(page, 1.0)
            window.close()


@pytest.mark.slow
def test_a_camera_plays_as_video_until_it_dies_and_when_it_is_back(
    browser: "Browser", service: PageService, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    write_video(tmp_path / "v.mp4", seconds=4, width=640, height=360)
    bench = Bench(service.settings, service.client.connections)
    with GstCamera(write_units([tmp_path / "v.mp4"], tmp_path / "v.units")) as camera:
        spec = bench.attach(camera.url, live=True, fps=2, name="gate")
        with bench.run(spec), open_page(browser, service.url, expected="/readyz") as page:
            page.goto("/streams/gate")
            # given video that plays, close to now
            plays(page, 2.0)
            page.get_by_text("Live video", exact=True).wait_for()
            video = page.locator(PLAYING)
            assert video.evaluate("(it) => [it.videoWidth, it.videoHeight]") == [640, 360]
            take_picture(page, "stream-video")
            # when the camera dies
            camera.kill()
            page.get_by_text("Connection lost").first.wait_for()
            assert "ago" in page.locator(".picture .note").inner_text()
            take_picture(page, "stream-video-lost")
            # then it plays again when the camera is back, without a reload
            camera.start()
            plays(page, 1.0)
            # and nobody remuxes for a page that shows something else
            page.get_by_role("button", name="What the model saw").click()
            page.locator("video.live").wait_for(state="detached")
            eventually(lambda: not bench.context.video.numbers()["video_streams"])
