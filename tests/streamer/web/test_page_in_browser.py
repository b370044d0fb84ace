"""The web page in a browser, over the real API: a test plays cameras and the model.

A browser is expensive without a graphics card: by default it only opens the wall.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from rq.job import Job
from rq.serializers import JSONSerializer

from streamer.domain.error_info import ErrorInfo
from streamer.domain.stream import StreamState
from streamer.errors import ErrorCode
from streamer.local.redis_server import EmbeddedServer
from streamer.media import onvif
from streamer.queues.deltas import Delta, Deltas
from streamer.settings import Settings
from streamer.sources import discovery
from tests.support.api_server import ApiServer
from tests.support.browser import MAX_SHIFT, open_page, serious_problems, take_picture
from tests.support.onvif_camera import OnvifCamera
from tests.support.page_service import Camera, PageService

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

QUESTION = "Is a car parked in front of the gate?"
CAPTION = "A red car turns into the yard."

CONNECTION_LOST = "net::ERR_|WebSocket"
"""Console errors of a page whose service is away."""


class Scene:
    """A service with two cameras, an open incident and some captions."""

    def __init__(self, service: PageService) -> None:
        self.service = service
        self.gate = service.camera("gate", 2_000_000_011, alert=QUESTION)
        self.yard = service.camera("yard", 2_000_000_018)
        self.refresh()
        for probability in (0.8, 0.93, 0.97):
            self.gate.answer_alert(probability)

    def refresh(self) -> None:
        """Let the cameras run: the pictures of the last seconds, and a caption of them."""
        now = time.time()
        for camera in (self.gate, self.yard):
            shown = camera.frames[-1].time if camera.frames else 0.0
            since = max(now - 20, shown)
            camera.show(*(since + (now - since) * step / 6 for step in range(1, 7)))
            camera.caption(CAPTION)

    @property
    def incident(self) -> str:
        """The id of the incident."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            found = self.service.client.incidents.page(state="open").incidents
            if found:
                return str(found[0].id)
            time.sleep(0.05)
        raise AssertionError("no incident was opened")


@pytest.fixture(scope="module")
def settings_of_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    folder = tmp_path_factory.mktemp("page")
    with EmbeddedServer(folder / "redis", persistent=False, max_memory=256 * 2**20) as server:
        yield Settings(redis_url=server.url, data_dir=folder / "data", log_level="error")


@pytest.fixture(scope="module")
def scene(settings_of_page: Settings, browser: "Browser") -> Iterator[Scene]:
    with PageService(settings_of_page) as service:
        yield Scene(service)


@pytest.fixture
def page(browser: "Browser", scene: Scene) -> "Iterator[Page]":
    # a test service has no workers, so `/readyz` is 503
    scene.refresh()
    with open_page(browser, scene.service.url, expected="/readyz") as opened:
        yield opened


ROUTES = {
    "wall": ("/", "text=A red car turns into the yard."),
    "stream": ("/streams/gate", "text=A red car turns into the yard."),
    "seen": ("/streams/gate?view=seen", "img[alt^='Frame of']"),
    "incidents": ("/incidents", "[data-incident]"),
    "incident": ("/incidents/{incident}", "#incident-title"),
    "search": ("/search?q=car", "mark"),
    "ask": ("/ask", "textarea"),
    "attach": ("/attach", "input"),
    "system": ("/system", ".figures"),
    "login": ("/login", "input"),
}


SMALL_TARGETS = """
() => [...document.querySelectorAll("button:not(.link), select, input, textarea, .button")]
  .map((each) => [each, each.getBoundingClientRect()])
  .filter(([, { width, height }]) => width > 0 && (width < 43.5 || height < 43.5))
  .map(([each, { width, height }]) => `${each.outerHTML.slice(0, 120)}: ${width} x ${height}`)
"""
"""What a finger hardly meets: all but links within text."""


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("phone", [False, True], ids=["desktop", "phone"])
def test_every_route_is_accessible_and_stands_still(
    browser: "Browser", scene: Scene, phone: bool, dark: bool
) -> None:
    incident = scene.incident
    look = f"{'phone' if phone else 'desktop'}-{'dark' if dark else 'light'}"
    with open_page(browser, scene.service.url, phone=phone, dark=dark, expected="/readyz") as page:
        for name, (path, shown) in ROUTES.items():
            scene.refresh()
            page.goto(path.format(incident=incident))
            page.wait_for_selector(shown)
            take_picture(page, f"{name}-{look}")
            assert serious_problems(page) == [], name
            assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0, name
            if phone:
                assert page.evaluate(SMALL_TARGETS) == [], name
            assert page.evaluate("window.layoutShift ?? 0") <= MAX_SHIFT, name
            assert page.title().endswith("NVILA Streamer"), name


def test_the_wall_shows_new_captions_and_what_becomes_of_a_camera(
    page: "Page", scene: Scene
) -> None:
    page.goto("/")
    tile = page.locator("[data-stream=yard]")
    tile.get_by_text(CAPTION).wait_for()

    scene.yard.show()
    scene.yard.caption("Two people carry a box.")
    tile.get_by_text("Two people carry a box.").wait_for()

    error = ErrorInfo(code=ErrorCode.STREAM_TIMEOUT, message="The camera does not answer.")
    scene.yard.report(StreamState.RECONNECTING, error)
    tile.get_by_text("Connection lost").first.wait_for()
    assert "ago" in tile.inner_text()
    take_picture(page, "wall-camera-lost")

    scene.yard.show()
    page.wait_for_selector("[data-stream=yard][data-state=live]")


@pytest.mark.slow
def test_dragging_selects_a_range_and_the_answer_is_written_as_it_comes(
    page: "Page", scene: Scene
) -> None:
    page.goto("/streams/gate")
    track = page.get_by_role("slider")
    box = track.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 0.80 * box["width"], box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.999 * box["width"], box["y"] + 20, steps=4)
    page.mouse.up()
    page.wait_for_url("**since=*")

    page.get_by_placeholder("Ask about this range").fill("How many cars passed?")
    page.keyboard.press("Enter")
    page.get_by_text("Waits").first.wait_for()
    query = scene.service.client.queries(1)[0]
    assert query.since is not None
    deltas = Deltas(scene.service.client.connections.main)
    deltas.add(query.id, Delta(text="Three cars", at=0))
    page.get_by_text("Three cars").wait_for()
    scene.gate.answer(query.id, "Three cars passed.", prompt=query.prompt)
    answer = page.locator(".answer")
    answer.get_by_text("Three cars passed.").wait_for()
    answer.get_by_text("4 frames · 8 tiles · 1,028 tokens (363 cached) · 812 ms").wait_for()
    answer.locator(".thumbnail img").first.wait_for()
    take_picture(page, "stream-answered")


@pytest.mark.slow
def test_tiles_are_drawn_with_the_reason_for_them(page: "Page", scene: Scene) -> None:
    scene.gate.show(*(time.time() - 3 + step for step in range(4)))
    scene.gate.caption("A van stops.")
    page.goto("/streams/gate?view=seen")
    page.get_by_text("2 \N{MULTIPLICATION SIGN} 2 tiles and an overview").wait_for()
    page.get_by_text("detail that one tile would lose").first.wait_for()
    page.locator(".tiles path").nth(2).wait_for(state="attached")  # two lines and the frame


@pytest.mark.slow
def test_incidents_are_worked_through_by_keyboard(
    page: "Page", scene: Scene, eventually: Callable[..., None]
) -> None:
    client = scene.service.client
    incident = scene.incident
    page.goto("/incidents")
    page.wait_for_selector("[data-incident]")
    page.keyboard.press("j")
    page.wait_for_url(f"**/incidents/{incident}")
    page.get_by_role("button", name="Take care of it").wait_for()

    page.keyboard.press("y")
    page.wait_for_selector("button[aria-pressed=true]:has-text('Right')")
    page.keyboard.press("s")
    page.wait_for_selector(".menu .list button:focus")
    page.keyboard.press("Enter")  # the first of the menu
    page.get_by_text("No messages about this for 15 minutes").wait_for()
    page.keyboard.press("a")
    page.get_by_role("button", name="Taken care of").wait_for()
    page.keyboard.press("e")
    eventually(lambda: client.incidents.get(incident).seen_by)

    reported = client.incidents.get(incident)
    assert reported.feedback is not None
    assert reported.feedback.verdict == "right"
    assert reported.acknowledged is not None
    assert len(client.incidents.silences()) == 1
    page.get_by_role("button", name="Undo").click()
    eventually(lambda: not client.incidents.silences())
    page.keyboard.press("Escape")
    page.wait_for_url("**/incidents")


@pytest.mark.slow
def test_a_new_incident_is_said_aloud_and_its_end_is_shown(page: "Page", scene: Scene) -> None:
    dock = scene.service.camera("dock", 2_000_000_025, alert="Is the door open?")
    dock.show(*(time.time() - 4 + step for step in range(4)))
    page.goto("/")
    page.wait_for_selector("[data-stream=dock]")
    for probability in (0.9, 0.95):
        dock.answer_alert(probability)
    said = "[role=alert]:has-text('New incident on dock: Is the door open')"
    page.wait_for_selector(said, state="attached")
    page.wait_for_selector("[data-stream=dock].alert")
    for _ in range(3):
        dock.answer_alert(0.05)
    page.wait_for_selector("[data-stream=dock]:not(.alert)")
    scene.service.client.detach("dock")
    page.wait_for_selector("[data-stream=dock]", state="detached")


@pytest.mark.slow
def test_a_watch_is_edited_in_place_and_a_removed_one_comes_back(
    page: "Page", scene: Scene
) -> None:
    client = scene.service.client
    page.goto("/streams/yard")
    page.get_by_role("button", name="Edit: Describe the scene.").click()
    page.get_by_label("Question about every window").fill("What do people do?")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("button", name="Remove: What do people do?").click()
    page.get_by_text("No standing question").wait_for()
    with page.expect_response("**/v1/streams?*"):  # the streams are read again meanwhile
        page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
    page.evaluate("new Promise((drawn) => requestAnimationFrame(() => setTimeout(drawn)))")
    assert page.get_by_text("No standing question").is_visible()
    page.get_by_role("button", name="Undo").click()
    page.get_by_role("button", name="Remove: What do people do?").wait_for()
    assert [watch.prompt for watch in client.stream("yard").watches] == ["What do people do?"]


@pytest.mark.slow
def test_one_answer_is_asked_of_all_cameras(page: "Page", scene: Scene) -> None:
    page.goto("/ask")
    page.get_by_role("button", name="One answer").click()
    page.get_by_placeholder("Ask 2 cameras at once").fill("Is anybody there?")
    page.keyboard.press("Enter")
    page.get_by_text("Waits").first.wait_for()
    query = scene.service.client.queries(1)[0]
    assert query.streams == [scene.gate.stream.id, scene.yard.stream.id]
    seen = scene.yard.caption("A man opens the door.")
    place = seen.model_dump(mode="json", include={"start", "end", "text", "error", "request_id"})
    windows = [{"stream": "yard", **place}]
    scene.yard.answer(
        query.id, "One man, in the yard.", prompt=query.prompt, data={"windows": windows}
    )
    answer = page.locator(".answer")
    answer.get_by_text("One man, in the yard.").wait_for()
    answer.get_by_text("A man opens the door.").wait_for()
    answer.locator(".thumbnail img").first.wait_for()
    take_picture(page, "ask-one-answer")


@pytest.mark.slow
def test_a_search_asks_the_model_whether_the_frames_show_it(
    page: "Page", scene: Scene, eventually: Callable[..., None]
) -> None:
    scene.gate.show(*(time.time() - 3 + step for step in range(4)))
    said = scene.gate.caption("A ladder leans on the wall.")
    client = scene.service.client
    eventually(lambda: client.timeline.get(said.request_id))
    page.goto("/search?q=ladder")
    page.get_by_role("button", name="Check the frames").click()
    page.get_by_text("Checking").wait_for()
    redis: Any = client.connections.main
    ids = [key.decode().removeprefix("rq:job:") for key in redis.keys("rq:job:qry_*")]
    jobs = Job.fetch_many(ids, connection=redis, serializer=JSONSerializer)
    asked = [job.args[0] for job in jobs if job is not None]
    (question,) = [each for each in asked if "ladder" in each["prompt"]]
    data = {**question["data"], "probabilities": {"yes": 0.93, "no": 0.07}}
    scene.gate.answer(question["id"], "yes", prompt=question["prompt"], data=data)
    page.get_by_text("Shows it · 93 %").wait_for()
    take_picture(page, "search-checked")


@pytest.mark.slow
def test_cameras_of_the_network_are_found_and_attached(
    page: "Page", scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onveef", reason="onveef is not installed: nvila-streamer[discover]")
    monkeypatch.setattr(discovery, "LISTEN", 0.4)
    with OnvifCamera() as camera:
        monkeypatch.setattr(onvif, "PORT", camera.port)
        page.goto("/attach")
        page.get_by_role("button", name="Search the network").click()
        page.get_by_label("Host or network").fill("127.0.0.1")
        page.get_by_label("User of the cameras").fill("admin")
        page.get_by_label("Password").fill("s3cret pass")
        page.get_by_role("button", name="Search", exact=True).click()
        page.get_by_text("Front door").first.wait_for()
        page.get_by_text("H.264 · 1920 \N{MULTIPLICATION SIGN} 1080 · 25 frames/s").wait_for()
        take_picture(page, "attach-found")
        page.get_by_role("button", name="Attach").first.click()
    assert page.get_by_label("Address").input_value() == (
        "rtsp://admin:s3cret%20pass@127.0.0.1:554/main"
    )
    assert page.get_by_label("Name").input_value().startswith("Front-door")


@pytest.mark.slow
def test_a_picture_that_is_gone_leaves_words_in_its_place(page: "Page", scene: Scene) -> None:
    page.route("**/snapshot.jpg*", lambda route: route.fulfill(status=200, body=b"no picture"))
    page.goto(f"/incidents/{scene.incident}")
    page.get_by_text("This picture is not kept any more").wait_for()
    page.locator(".thumb.none").first.wait_for()
    take_picture(page, "incident-without-picture")


@pytest.mark.slow
def test_the_palette_goes_anywhere_by_a_few_letters(
    page: "Page", eventually: Callable[..., None]
) -> None:
    page.goto("/")
    page.wait_for_selector("[data-stream=yard]")
    page.keyboard.press("Control+k")
    page.wait_for_selector("dialog.palette[open] input:focus")
    page.keyboard.type("yar")
    page.keyboard.press("Enter")
    page.wait_for_url("**/streams/yard")
    page.wait_for_selector("dialog.palette[open]", state="detached")

    def reached() -> bool:
        page.keyboard.press("g")
        page.keyboard.press("i")  # counts for a while only after "g": a busy machine tries again
        return page.url.endswith("/incidents")

    eventually(reached)
    page.go_back()
    page.wait_for_url("**/streams/yard")


@pytest.mark.slow
def test_a_restart_of_the_service_leaves_no_gap(
    browser: "Browser", tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("restart")
    with (
        EmbeddedServer(folder / "redis", persistent=False, max_memory=None) as redis,
        ExitStack() as window,
    ):
        # given a page that shows a camera
        settings = Settings(redis_url=redis.url, data_dir=folder / "data", log_level="error")
        with PageService(settings) as service:
            camera = service.camera("gate")
            camera.show()
            camera.caption("The first caption.", frames=1)
            port = service.api.port
            page = window.enter_context(open_page(browser, service.url, expected=CONNECTION_LOST))
            page.goto("/")
            page.get_by_text("The first caption.").wait_for()
            page.evaluate("window.mark = 'not loaded again'")
        # when the API is away while the model goes on
        page.get_by_text("The page tries again by itself.").wait_for()
        assert serious_problems(page) == []
        take_picture(page, "wall-service-away")
        with PageService(settings, port) as service:
            other = Camera(service.client, service.client.stream("gate"), 7)
            other.show()
            other.caption("What was said meanwhile.", frames=1)
            # then the page goes on by itself
            page.get_by_text("What was said meanwhile.").wait_for()
            page.get_by_text("The page tries again by itself.").wait_for(state="detached")
            assert page.evaluate("window.mark") == "not loaded again"
            window.close()


@pytest.mark.slow
def test_a_key_is_asked_for_and_leads_back(
    browser: "Browser", tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("keys")
    with EmbeddedServer(folder / "redis", persistent=False, max_memory=None) as redis:
        settings = Settings(
            redis_url=redis.url, data_dir=folder / "data", log_level="error", api_keys=["s3cret"]
        )
        with (
            ApiServer(settings) as api,
            open_page(browser, api.url, expected="401") as page,
        ):
            page.goto("/search?q=car")
            page.wait_for_url("**/login?next=*")
            page.get_by_label("Key").fill("wrong")
            page.keyboard.press("Enter")
            page.get_by_text("The API key is wrong").wait_for()
            page.get_by_label("Key").fill("s3cret")
            page.keyboard.press("Enter")
            page.wait_for_url("**/search?q=car")
            page.get_by_text("Nothing was found").wait_for()


FOCUSED = """
() => {
  const at = document.activeElement;
  if (at === document.body) return null;
  const { outlineStyle, outlineWidth } = getComputedStyle(at);
  const { width, height } = at.getBoundingClientRect();
  const name = at.getAttribute("aria-label") ?? at.textContent.trim().slice(0, 60);
  const ring = outlineStyle !== "none" && parseFloat(outlineWidth) >= 1;
  return { what: `${at.tagName} ${at.id} ${name}`, ring: ring && width > 0 && height > 0 };
}
"""


@pytest.mark.slow
def test_every_stop_of_the_tab_key_is_seen(page: "Page", scene: Scene) -> None:
    incident = scene.incident
    for name, (path, shown) in ROUTES.items():
        page.goto(path.format(incident=incident))
        page.wait_for_selector(shown)
        stops, unseen = set(), []
        for _ in range(80):
            page.keyboard.press("Tab")
            stop = page.evaluate(FOCUSED)
            if stop is None or stop["what"] in stops:
                continue
            stops.add(stop["what"])
            if not stop["ring"]:
                unseen.append(stop["what"])
        assert unseen == [], name
        assert len(stops) >= 2, name


def _tab_to(page: "Page", selector: str) -> None:
    for _ in range(120):
        page.keyboard.press("Tab")
        if page.evaluate("(wanted) => document.activeElement.matches(wanted)", selector):
            return
    raise AssertionError(f"the Tab key does not reach {selector}")


@pytest.mark.slow
def test_a_camera_is_worked_with_by_keyboard_alone(
    page: "Page", scene: Scene, eventually: Callable[..., None]
) -> None:
    client = scene.service.client
    # from the wall to a camera, past the navigation
    page.goto("/")
    page.wait_for_selector("[data-stream=yard]")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    _tab_to(page, "[data-stream=yard]")
    page.keyboard.press("Enter")
    page.wait_for_url("**/streams/yard")

    # what the model saw, and a range of the timeline
    page.get_by_text(CAPTION).first.wait_for()
    page.keyboard.press("t")
    page.wait_for_selector("img[alt^='Frame of']")
    page.keyboard.press("l")
    _tab_to(page, "[role=slider]")
    for _ in range(4):
        page.keyboard.press("Shift+ArrowLeft")
    page.wait_for_url("**since=*")

    # a question about it
    _tab_to(page, "#ask")
    page.keyboard.type("Who came?")
    page.keyboard.press("Enter")
    eventually(lambda: [each.prompt for each in client.queries(1)] == ["Who came?"])
    assert client.queries(1)[0].since is not None

    # an alert, added and removed
    page.keyboard.press("Escape")
    _tab_to(page, "[aria-labelledby=watches-title] > header button")
    page.keyboard.press("Enter")
    page.wait_for_selector(".watch-form textarea:focus")
    page.keyboard.type("Is the gate open?")
    _tab_to(page, ".watch-form .segments button:last-child")
    page.keyboard.press("Space")
    _tab_to(page, ".watch-form .button.primary")
    page.keyboard.press("Enter")
    remove = "Remove: Is the gate open?"
    page.get_by_role("button", name=remove).wait_for()
    _tab_to(page, f"button[aria-label='{remove}']")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Undo").wait_for()
    _tab_to(page, ".toast button")
    page.keyboard.press("Enter")
    page.get_by_role("button", name=remove).wait_for()

    # the list of keys, and away
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open] h3")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog[open]", state="detached")
    page.keyboard.press("/")
    page.wait_for_url("**/search")


@pytest.mark.slow
def test_the_wall_is_arranged_by_keys_and_its_address(page: "Page", scene: Scene) -> None:
    # given a camera in trouble, whose name comes last
    error = ErrorInfo(code=ErrorCode.STREAM_TIMEOUT, message="The camera does not answer.")
    scene.gate.show()
    scene.yard.report(StreamState.FAILED, error)
    page.goto("/?columns=2")
    page.wait_for_selector("[data-stream=yard][data-state=failed]")
    # then those with incidents come first, and trouble next
    names = "[...document.querySelectorAll('.tile')].map((tile) => tile.dataset.stream)"
    assert page.evaluate(names) == ["gate", "yard"]
    shown = (
        "getComputedStyle(document.querySelector('.wall')).gridTemplateColumns.split(' ').length"
    )
    assert page.evaluate(shown) == 2

    # columns are a part of the address
    for key, columns in (("]", 3), ("[", 2), ("[", 1)):
        page.keyboard.press(key)
        page.wait_for_url(f"**/?columns={columns}")
    assert page.evaluate(shown) == 1

    # alone, in full screen
    page.keyboard.press("f")
    page.locator(".side").wait_for(state="hidden")
    page.keyboard.press("Escape")
    page.locator(".side").wait_for()
    scene.yard.show()


@pytest.mark.slow
def test_one_socket_serves_all_pages_and_nothing_comes_from_elsewhere(
    page: "Page", scene: Scene
) -> None:
    sockets: list[str] = []
    asked: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    page.on("request", lambda request: asked.append(request.url))
    page.goto("/")
    page.wait_for_selector("[data-stream=gate]")
    for name in ("Incidents", "Search", "Ask", "System", "Cameras"):
        page.locator(".side").get_by_role("link", name=name).click()
        page.get_by_role("heading", level=1, name=name).wait_for()
    page.locator("[data-stream=gate]").click()
    page.wait_for_url("**/streams/gate")
    page.go_back()
    page.wait_for_selector("[data-stream=gate]")
    assert len(sockets) == 1
    assert [url for url in asked if not url.startswith((scene.service.url, "blob:"))] == []


@pytest.mark.slow
def test_light_or_dark_is_chosen_and_remembered(page: "Page") -> None:
    page.goto("/")
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Light or dark").click()
    # the browser changes a colour with the next picture that it draws
    page.wait_for_function(f"before => {ground} !== before", arg=light)
    dark = page.evaluate(ground)
    page.reload()
    page.get_by_role("button", name="Light or dark").wait_for()
    assert page.evaluate(ground) == dark
