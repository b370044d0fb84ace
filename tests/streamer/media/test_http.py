"""Video over plain HTTP, from a real server."""

import base64
import functools
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.media.access_policy import AccessPolicy
from streamer.media.source import Source, inspect_source
from streamer.media.urls import normalise
from tests.support.videos import number_of, write_video

PASSWORD = "p@ss/w#rd% x"
HERE = AccessPolicy(hosts=("127.0.0.1",))


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; `/locked/` asks for a password."""

    def do_GET(self) -> None:
        expected = "Basic " + base64.b64encode(f"admin:{PASSWORD}".encode()).decode()
        if self.path.startswith("/locked/") and self.headers["Authorization"] != expected:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="x"')
            self.end_headers()
        else:
            super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("site")
    (folder / "locked").mkdir()
    for name in ("v.mkv", "v.ts", "v.cgi", "locked/v.mkv"):
        write_video(folder / "v.mkv" if name == "v.cgi" else folder / name, seconds=1)
    (folder / "v.cgi").write_bytes((folder / "v.mkv").read_bytes())
    (folder / "page.mp4").write_text("<html><body>Not a video</body></html>" * 50)
    handler = functools.partial(Handler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", ["v.mkv", "v.ts"])
def test_a_file_is_read_whole(site: str, name: str) -> None:
    with Source(f"http://{site}/{name}", live=False, access=HERE) as source:
        frames = list(source)
    numbers = [number_of(frame.image.to_ndarray(format="rgb24")) for frame in frames]
    assert numbers == list(range(25))
    assert frames[-1].pts == pytest.approx(24 / 25, abs=0.002)


def test_what_is_no_file_is_live_and_its_end_a_lost_connection(site: str) -> None:
    with Source(f"http://{site}/v.cgi", live=True, access=HERE) as source:
        frames = iter(source)
        next(frames)
        with pytest.raises(StreamerError) as caught:
            list(frames)
    assert caught.value.code is ErrorCode.STREAM_CONNECTION_FAILED


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("none.mp4", ErrorCode.STREAM_NOT_FOUND),
        ("page.mp4", ErrorCode.STREAM_NO_VIDEO),
        ("locked/v.mkv", ErrorCode.STREAM_AUTH_FAILED),
    ],
)
def test_what_cannot_be_used_says_why(site: str, path: str, code: ErrorCode) -> None:
    with pytest.raises(StreamerError) as caught:
        inspect_source(f"http://admin:hunter2@{site}/{path}", 5, HERE)
    assert caught.value.code is code
    assert "hunter2" not in caught.value.message


def test_a_password_with_odd_characters_opens(site: str) -> None:
    url = normalise(f"http://admin:{PASSWORD}@{site}/locked/v.mkv")
    assert inspect_source(url, 5, HERE).codec == "h264"
