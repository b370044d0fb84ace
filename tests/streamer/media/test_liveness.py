"""Live or recorded, by what the server says and sends; pictures over HTTP in every form."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import pytest

from streamer.errors import StreamerError
from streamer.media.liveness import detect_live, is_live_source
from streamer.media.source import DecodedFrame, Source, inspect_source
from tests.support.videos import number_of, numbered_picture, write_video
from tests.support.web import HERE

Headers = dict[str, str]


def jpeg(number: int) -> bytes:
    return cv2.imencode(".jpg", numbered_picture(number)[..., ::-1])[1].tobytes()


class Server:
    """Answers every path with the next of its answers: headers and pieces of a body."""

    def __init__(self) -> None:
        self.answers: dict[str, Callable[[], tuple[Headers, Iterator[bytes]]]] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                answer = outer.answers.get(self.path)
                self.send_response(200 if answer else 404)
                headers, pieces = answer() if answer else ({"Content-Length": "0"}, iter(()))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    for piece in pieces:
                        self.wfile.write(piece)
                except OSError:
                    return

            def log_message(self, format: str, *args: object) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def serve(self, path: str, body: bytes, *, length: bool = True, **headers: str) -> str:
        """Serve `body` at `path`; return its URL."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if length:
            named["Content-Length"] = str(len(body))
        self.answers[path] = lambda: (named, iter([body]))
        return self.url + path

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    served = Server()
    yield served
    served.close()


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder: Path = tmp_path_factory.mktemp("videos")
    found = {}
    for suffix in ("ts", "mkv", "mp4"):
        write_video(folder / f"v.{suffix}", seconds=2, fps=10)
        found[suffix] = (folder / f"v.{suffix}").read_bytes()
    return found


def live(url: str) -> bool:
    return detect_live(url, access=HERE, timeout=5)


def test_a_file_with_a_length_is_a_recording_whatever_it_is_called(
    server: Server, video: dict[str, bytes]
) -> None:
    for path in ("/v.ts", "/video", "/download.cgi?id=3"):
        assert not live(server.serve(path, video["ts"]))


def test_a_stream_without_a_length_is_live_whatever_it_is_called(
    server: Server, video: dict[str, bytes]
) -> None:
    for path in ("/api/stream.mp4?src=cam", "/api/stream.ts", "/v.mkv"):
        assert live(server.serve(path, video["mkv"], length=False))


@pytest.mark.parametrize(
    ("end", "expected"),
    [("#EXT-X-ENDLIST\n", False), ("", True), ("#EXT-X-PLAYLIST-TYPE:VOD\n", False)],
)
def test_a_playlist_with_an_end_is_a_recording(
    server: Server, video: dict[str, bytes], end: str, expected: bool
) -> None:
    server.serve("/0.ts", video["ts"])
    media = f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\n0.ts\n{end}"
    master = "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nlow/list\n"

    assert live(server.serve("/low/list", media.encode())) is expected
    assert live(server.serve("/master.m3u8", master.encode())) is expected


def test_pictures_are_live_one_by_one_or_in_a_row(server: Server) -> None:
    assert live(server.serve("/snapshot.jpg", jpeg(1), Content_Type="image/jpeg"))
    assert live(server.serve("/snapshot", jpeg(1)))
    multipart = "multipart/x-mixed-replace;boundary=x"
    assert live(server.serve("/mjpeg", jpeg(1) * 3, Content_Type=multipart))
    # but not a file of pictures
    assert not live(server.serve("/film.mjpeg", jpeg(1) + jpeg(2)))


def test_the_user_decides_where_the_server_misleads(
    server: Server, video: dict[str, bytes]
) -> None:
    url = server.serve("/endless", video["ts"], length=False)

    assert not is_live_source(url, False, access=HERE, timeout=5)
    assert is_live_source(url, True, access=HERE, timeout=5)
    # and where nothing answers, the form of the URL
    assert is_live_source(server.url + "/none.cgi", None, access=HERE, timeout=5)
    assert not is_live_source(server.url + "/none.mp4", None, access=HERE, timeout=5)


@pytest.mark.parametrize("suffix", ["ts", "mkv"])
def test_a_recording_without_a_suffix_is_read_to_its_end(
    server: Server, video: dict[str, bytes], suffix: str
) -> None:
    url = server.serve("/download", video[suffix])

    assert inspect_source(url, 5, HERE).codec == "h264"
    with Source(url, live=False, access=HERE, read_timeout=5) as source:
        assert len(list(source)) == 20


# Pictures


def first_numbers(url: str, count: int, **arguments: object) -> list[int]:
    frames: list[DecodedFrame] = []
    with Source(url, live=True, access=HERE, read_timeout=5, **arguments) as source:  # type: ignore[arg-type]
        for frame in source:
            frames.append(frame)
            if len(frames) == count:
                break
    return [number_of(frame.image.to_ndarray(format="rgb24")) for frame in frames]


PART = b"Content-Type: image/jpeg\r\n\r\n"


@pytest.mark.parametrize(
    ("first", "before", "content_type"),
    [
        (b"", b"\r\n--frame\r\n" + PART, "multipart/x-mixed-replace; boundary=frame"),
        # no first boundary (ESP32-CAM)
        (PART, b"\r\n--123\r\n" + PART, "multipart/x-mixed-replace; boundary=123"),
        # no part types
        (b"--x\r\n\r\n", b"\r\n--x\r\n\r\n", "multipart/x-mixed-replace; boundary=x"),
        # nothing between the pictures, and no type
        (b"", b"", "application/octet-stream"),
        # a boundary that is not the announced one
        (b"--other\r\n" + PART, b"\r\n--other\r\n" + PART, "multipart/mixed; boundary=--frame"),
    ],
)
def test_pictures_in_a_row_are_read_however_they_are_separated(
    server: Server, first: bytes, before: bytes, content_type: str
) -> None:
    def answer() -> tuple[Headers, Iterator[bytes]]:
        def pieces() -> Iterator[bytes]:
            yield first
            for number in itertools.count():
                yield jpeg(number % 1000) + before
                time.sleep(0.02)

        return {"Content-Type": content_type}, pieces()

    server.answers["/video"] = answer

    found = first_numbers(server.url + "/video", 5)

    assert found == sorted(set(found))
    assert found[0] <= 3


@pytest.mark.parametrize("length", [True, False])
def test_a_snapshot_url_is_polled(server: Server, length: bool) -> None:
    numbers = itertools.count()

    def answer() -> tuple[Headers, Iterator[bytes]]:
        picture = jpeg(next(numbers))
        headers = {"Content-Type": "image/jpeg"}
        if length:
            headers["Content-Length"] = str(len(picture))
        return headers, iter([picture])

    server.answers["/snapshot"] = answer

    found = first_numbers(server.url + "/snapshot", 4, poll=0.2)

    assert found == sorted(set(found))


def test_a_snapshot_that_is_gone_says_so(server: Server) -> None:
    url = server.serve("/snapshot", jpeg(1))
    with Source(url, live=True, access=HERE, read_timeout=5, poll=0.2) as source:
        frames = iter(source)
        next(frames)
        del server.answers["/snapshot"]
        with pytest.raises(StreamerError) as caught:
            list(frames)
    assert "404" in caught.value.message
