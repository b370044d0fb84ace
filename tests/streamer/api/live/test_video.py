"""Live video over the WebSocket: a test plays the ingest worker, a real client the page."""

import json
import struct
from collections.abc import Callable
from contextlib import ExitStack
from itertools import pairwise
from typing import Any

import av
import httpx
import pytest
from websockets.sync.client import ClientConnection, connect

from streamer.api.live import videos
from streamer.clock import Clock, SystemClock
from streamer.domain.stream import StreamSpec
from streamer.media.remuxer import Fragment, Remuxer
from streamer.service import Service
from streamer.settings import Settings
from streamer.sources.live_video import LiveVideo, VideoPiece
from tests.support.api_server import ApiServer
from tests.support.videos import decoded_numbers, write_video


@pytest.fixture(scope="module")
def fragments(tmp_path_factory: pytest.TempPathFactory) -> list[Fragment]:
    """24 numbered frames; each 12th is a key frame."""
    path = tmp_path_factory.mktemp("video") / "v.mp4"
    write_video(path, seconds=1, fps=24, gop=12)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        remuxer = Remuxer(stream, 10**7)
        found = [each for p in container.demux(stream) if p.size for each in remuxer.mux(p)]
    return found + remuxer.finish()


class Film:
    """The ingest worker of a stream: it adds one frame after another, for ever."""

    def __init__(self, client: Service, fragments: list[Fragment], name: str = "yard") -> None:
        spec = StreamSpec(name=name, url="rtsp://cam/", live=True)
        client.registry.create(spec, spec.url)
        self.id = spec.id
        self.video = LiveVideo(client.connections.frames, client.connections.clock)
        self.run, self.number = 1, 0
        self.clock: Clock = client.connections.clock
        self._fragments = fragments

    def add(self, count: int, padding: int = 0) -> None:
        for _ in range(count):
            fragment = self._fragments[self.number % len(self._fragments)]
            init, mime = (fragment.init, fragment.mime) if fragment.key else (b"", "")
            # a box that players pass over makes a piece as large as that of a better camera
            free = struct.pack(">I4s", padding + 8, b"free") + bytes(padding) if padding else b""
            data = fragment.data + free
            piece = VideoPiece(self.run, self.number, self.clock.time(), data, init, mime)
            self.video.add(self.id, [piece], None)
            self.number += 1


@pytest.fixture
def film(api_server: ApiServer, fragments: list[Fragment]) -> Film:
    """A stream of the API's installation."""
    return Film(api_server.client, fragments)


class Page:
    """A page that watches one stream."""

    def __init__(self, server: ApiServer, stream: str = "yard") -> None:
        address = server.url.replace("http", "ws") + "/v1/ws"
        self._opening = connect(address, max_size=None)
        self._stream = stream
        self.headers: list[dict[str, Any]] = []

    def subscribe(self, stream: str, **fields: Any) -> None:
        wish = {"type": "subscribe", "events": [], "video": {"streams": [stream]}, **fields}
        self.connection.send(json.dumps(wish))

    def hear(self) -> tuple[dict[str, Any], bytes]:
        """Return the header and the bytes of the next message."""
        message = self.connection.recv(timeout=60)
        if isinstance(message, str):
            return json.loads(message), b""
        (length,) = struct.unpack(">I", message[:4])
        header = json.loads(message[4 : 4 + length])
        self.headers.append(header)
        return header, message[4 + length :]

    def frames(self, count: int) -> list[int]:
        """Return the numbers that the next frames show, decoded from the bytes of the page."""
        film = b"".join(self.hear()[1] for _ in range(count))
        return decoded_numbers(film)

    def __enter__(self) -> "Page":
        self.connection: ClientConnection = self._opening.__enter__()
        self.subscribe(self._stream)
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()


def test_viewers_begin_with_a_key_frame_and_share_one_film(
    api_server: ApiServer, film: Film, eventually: Callable[..., None]
) -> None:
    with Page(api_server) as first:
        # nobody made video before somebody watched
        eventually(lambda: film.id in film.video.wanted())
        film.add(15)
        assert first.frames(15) == list(range(15))
        # when another one comes between two key frames
        with Page(api_server, film.id) as second:
            eventually(lambda: api_server.app.state.videos.viewers == 2)
            film.add(2)
            assert second.frames(5) == [12, 13, 14, 15, 16]
            start, *others = second.headers
            assert start["start"] is True
            assert start["content_type"].startswith('video/mp4; codecs="avc1.')
            assert (start["stream"], start["stream_id"]) == (film.id, film.id)
            assert not any("start" in header for header in others)
    # then nobody is left, and the wish ends
    eventually(lambda: api_server.app.state.videos.viewers == 0)
    eventually(lambda: not film.video.wanted())


def test_a_video_goes_on_while_the_page_subscribes_to_something_else(
    api_server: ApiServer, film: Film, eventually: Callable[..., None]
) -> None:
    with Page(api_server) as page:
        eventually(lambda: film.id in film.video.wanted())
        film.add(1)
        page.hear()
        page.subscribe("yard", events=["incident.*"])
        assert page.hear()[0]["type"] == "hello"
        film.add(1)
        assert "start" not in page.hear()[0]


def test_another_run_begins_with_its_own_initialization(
    api_server: ApiServer, film: Film, eventually: Callable[..., None]
) -> None:
    with Page(api_server) as page:
        eventually(lambda: film.id in film.video.wanted())
        film.add(3)
        page.frames(3)
        # when the camera connects again, and a former worker still writes
        former, film.run, film.number = film.run, 2, 0
        film.add(1)
        film.run, film.number = former, 3
        film.add(1)
        film.run, film.number = 2, 1
        film.add(1)
        assert page.frames(2) == [0, 1]
        assert [header.get("start", False) for header in page.headers[-2:]] == [True, False]


def test_a_lost_piece_makes_viewers_wait_for_a_key_frame(
    api_server: ApiServer, film: Film, eventually: Callable[..., None]
) -> None:
    with Page(api_server) as page:
        eventually(lambda: film.id in film.video.wanted())
        film.add(3)
        film.number += 1
        film.add(8)  # up to the next key frame
        film.add(2)
        assert page.frames(5) == [0, 1, 2, 12, 13]
        assert [header.get("start", False) for header in page.headers] == [True, *4 * [False]]


def test_a_viewer_that_does_not_read_is_skipped_to_a_key_frame(
    api_server: ApiServer,
    film: Film,
    fragments: list[Fragment],
    eventually: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(videos, "MAX_QUEUED_BYTES", 1 << 20)
    films = api_server.app.state.videos
    with Page(api_server) as slow, Page(api_server) as quick:
        eventually(lambda: films.viewers == 2)
        # when one reads, and the other does not
        viewers = films._films[film.id].viewers
        while not any(viewer.skips for viewer in viewers):
            film.add(1, padding=300_000)
            quick.hear()
        # then what waits for it has not grown with the film
        (skipped,) = [viewer for viewer in viewers if viewer.skips]
        assert sum(piece.size for piece in skipped._queue) <= 1 << 20
        # and what it reads later has gaps, each of which ends with a key frame
        film.add(24)
        film.run, film.number = 2, 0
        film.add(1)
        heard = [slow.hear()[1]]
        while "start" not in (following := slow.hear())[0]:
            heard.append(following[1])
        shown = [n for data in heard for n, each in enumerate(fragments) if each.data in data]
        assert len(shown) == len(heard)
        jumps = [b for a, b in pairwise(shown) if b != (a + 1) % 24]
        assert jumps
        assert all(number % 12 == 0 for number in jumps)
        metrics = httpx.get(f"{api_server.url}/metrics", timeout=120).text
        assert "streamer_video_viewers 2.0" in metrics
    eventually(lambda: films.viewers == 0)
    metrics = httpx.get(f"{api_server.url}/metrics", timeout=120).text
    assert f"streamer_video_skips_total {films.skips:.1f}" in metrics
    assert films.skips > 0


class _Late(SystemClock):
    """A clock that is four seconds behind."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def time(self) -> float:
        return self._clock.time() - 4


def test_the_film_of_a_dead_camera_is_not_shown_as_live(
    api_server: ApiServer, film: Film, eventually: Callable[..., None]
) -> None:
    film.clock, clock = _Late(film.clock), film.clock
    film.add(3)
    film.clock = clock
    with Page(api_server) as page:
        eventually(lambda: film.id in film.video.wanted())
        film.run, film.number = 2, 0
        film.add(1)
        header, _ = page.hear()
        assert header["start"]
        assert page.headers == [header]


def test_more_viewers_than_the_setting_allows_are_told_so(
    settings: Settings, fragments: list[Fragment], eventually: Callable[..., None]
) -> None:
    limited = settings.model_copy(update={"max_video_viewers": 1})
    with ApiServer(limited) as server, ExitStack() as pages:
        film = Film(server.client, fragments)
        first = pages.enter_context(Page(server))
        eventually(lambda: server.app.state.videos.viewers == 1)
        refused, _ = pages.enter_context(Page(server)).hear()
        assert (refused["type"], refused["stream_id"]) == ("video.refused", film.id)
        assert refused["error"]["code"] == "TOO_MANY_LISTENERS"
        assert "max_video_viewers" in refused["error"]["message"]
        film.add(1)
        assert first.hear()[0]["start"]


def test_a_socket_watches_a_few_streams_at_most(api_server: ApiServer, film: Film) -> None:
    with Page(api_server) as page:
        page.connection.send(
            json.dumps({"type": "subscribe", "events": [], "video": {"streams": ["yard"] * 5}})
        )
        reported, _ = page.hear()
        assert reported["type"] == "error"
        assert "video.streams" in reported["error"]["message"]
