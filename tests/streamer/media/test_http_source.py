"""http(s) sources from a real server: allowed addresses, recovery, and messages."""

import socket
import threading
from pathlib import Path
from urllib.parse import quote

import cv2
import psutil
import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.media.access_policy import AccessPolicy
from streamer.media.http_source import HttpOpener
from streamer.media.source import Source, inspect_source
from streamer.media.urls import normalise
from tests.support.videos import number_of, numbered_picture, write_video
from tests.support.web import HERE, Site, numbers

PASSWORD = "p@ss/w#rd% x"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    write_video(folder / "v.mp4", seconds=4)
    (folder / "notes.txt").write_text("nothing to see")
    (folder / "plain.bin").write_bytes(bytes(range(256)) * 4000)
    return folder


def failure(url: str, access: AccessPolicy = HERE, timeout: float = 5.0) -> StreamerError:
    with pytest.raises(StreamerError) as caught:
        inspect_source(url, timeout, access)
    return caught.value


def test_a_file_whose_index_is_at_its_end_is_read_whole(site: Site) -> None:
    # given an mp4, which keeps its index behind the pictures
    assert numbers(f"{site.url}/v.mp4") == list(range(100))


def test_reading_may_start_in_the_middle(site: Site) -> None:
    found = numbers(f"{site.url}/v.mp4", start=2.5)
    assert found == list(range(60, 100))


def test_a_line_that_breaks_is_mended(site: Site) -> None:
    site.cut["/v.mp4"] = 4_000
    assert numbers(f"{site.url}/v.mp4") == list(range(100))
    assert site.requests["/v.mp4"] > 3


def test_one_that_breaks_for_good_is_an_error_and_not_an_end(folder: Path, tmp_path: Path) -> None:
    # given a server without ranges
    write_video(tmp_path / "v.ts", seconds=4)
    with Site(tmp_path, ranges=False) as site:
        site.cut["/v.ts"] = (tmp_path / "v.ts").stat().st_size // 2
        with Source(f"{site.url}/v.ts", live=False, access=HERE, read_timeout=5) as source:
            frames = iter(source)
            with pytest.raises(StreamerError) as caught:
                list(frames)
        assert source.decoded > 20
        assert caught.value.code is ErrorCode.STREAM_CONNECTION_FAILED


@pytest.mark.parametrize("headers", [True, False])
def test_a_camera_that_sends_one_jpeg_after_the_other(site: Site, headers: bool) -> None:
    # given a camera that sends 10 frames per second without timestamps
    pieces = []
    for number in range(60):
        jpeg = cv2.imencode(".jpg", numbered_picture(number))[1].tobytes()
        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
        pieces.append(head.encode() + jpeg + b"\r\n" if headers else jpeg)
    site.slow["/cam.cgi"] = (pieces, 0.1)
    frames = []
    with Source(f"{site.url}/cam.cgi", live=True, access=HERE) as source:
        for frame in source:
            frames.append((number_of(frame.image.to_ndarray(format="rgb24")), frame.pts))
            if len(frames) == 15:
                break
    numbers, times = zip(*frames, strict=True)
    assert numbers == tuple(range(15))
    # then frames are dated by arrival
    assert 0.5 < times[-1] - times[3] < 10


def test_redirects_are_followed(site: Site) -> None:
    site.redirects = {"/a.mp4": "/b.mp4", "/b.mp4": f"{site.url}/v.mp4"}
    assert inspect_source(f"{site.url}/a.mp4", 5, HERE).codec == "h264"


def test_redirects_that_go_round_end(site: Site) -> None:
    site.redirects = {"/a.mp4": "/a.mp4"}
    assert failure(f"{site.url}/a.mp4").code is ErrorCode.STREAM_URL_FORBIDDEN
    assert site.requests["/a.mp4"] < 12


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://h/x"])
def test_a_redirect_to_another_scheme_is_refused(site: Site, target: str) -> None:
    site.redirects = {"/a.mp4": target}
    error = failure(f"{site.url}/a.mp4")
    assert error.code is ErrorCode.STREAM_URL_FORBIDDEN


def resolve(monkeypatch: pytest.MonkeyPatch, names: dict[str, list[str]]) -> list[str]:
    """Resolve names to the given addresses, one per lookup; the last one repeats."""
    asked: list[str] = []
    ask = socket.getaddrinfo

    def answer(host, port, *args, **kwargs):
        if host not in names:
            return ask(host, port, *args, **kwargs)
        asked.append(host)
        known = names[host]
        address = known.pop(0) if len(known) > 1 else known[0]
        return ask(address, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    return asked


def test_a_name_that_leads_to_this_machine_is_refused(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve(monkeypatch, {"harmless.example": ["127.0.0.1"]})
    error = failure(f"http://me:hunter2@harmless.example:{site.port}/v.mp4", AccessPolicy())
    assert error.code is ErrorCode.STREAM_URL_FORBIDDEN
    assert "add harmless.example to the setting allowed_hosts" in error.message
    assert "hunter2" not in error.message
    assert not site.requests


def test_a_redirect_to_this_machine_is_refused(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    # given an allowed server that redirects to a forbidden one
    resolve(monkeypatch, {"good.example": ["127.0.0.1"], "bad.example": ["127.0.0.1"]})
    site.redirects = {"/a.mp4": f"http://bad.example:{site.port}/v.mp4"}
    error = failure(f"http://good.example:{site.port}/a.mp4", AccessPolicy(hosts=("good.example",)))
    assert error.code is ErrorCode.STREAM_URL_FORBIDDEN
    assert site.requests == {"/a.mp4": 1}


def test_the_address_that_was_looked_at_is_the_one_connected_to(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a name that resolves to another address at the second lookup
    asked = resolve(monkeypatch, {"rebind.example": ["127.0.0.1", "127.0.0.2"]})
    opener = HttpOpener(f"http://rebind.example:{site.port}/v.mp4", HERE, live=False, timeout=5)
    try:
        assert len(opener.open_first().read(100)) == 100
        assert asked == ["rebind.example"]
        # then the next connection is checked again, and refused
        narrow = AccessPolicy(hosts=("127.0.0.1/32",))
        other = HttpOpener(f"http://rebind.example:{site.port}/x", narrow, live=False, timeout=5)
        with pytest.raises(StreamerError) as caught:
            other.open_first()
        assert caught.value.code is ErrorCode.STREAM_URL_FORBIDDEN
        other.close()
    finally:
        opener.close()


@pytest.mark.parametrize("kind", ["basic", "digest"])
def test_a_password_with_odd_characters(site: Site, kind: str) -> None:
    setattr(site, kind, ("admin", PASSWORD))
    for password in (quote(PASSWORD, safe=""), PASSWORD):
        url = normalise(f"http://admin:{password}@{site.address}/v.mp4")
        assert inspect_source(url, 5, HERE).codec == "h264"
    assert all(login.lower().startswith(kind) for _, login in site.logins)
    for url in (f"{site.url}/v.mp4", f"http://admin:hunter2@{site.address}/v.mp4"):
        error = failure(url)
        assert error.code is ErrorCode.STREAM_AUTH_FAILED
        assert "hunter2" not in error.message


def test_a_password_goes_to_its_own_host_only(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve(monkeypatch, {"other.example": ["127.0.0.1"]})
    site.basic = ("admin", PASSWORD)
    site.redirects = {"/a.mp4": f"http://other.example:{site.port}/v.mp4"}
    failure(f"http://admin:{quote(PASSWORD, safe='')}@{site.address}/a.mp4")
    # then it was sent to its own host, and the other one asked for it in vain
    assert {host for host, _ in site.logins} == {site.address}
    assert site.requests["/v.mp4"] > 0


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("none.mp4", ErrorCode.STREAM_NOT_FOUND),
        ("notes.txt", ErrorCode.STREAM_NO_VIDEO),
        ("plain.bin", ErrorCode.STREAM_NO_VIDEO),
    ],
)
def test_what_cannot_be_used_says_why(site: Site, path: str, code: ErrorCode) -> None:
    error = failure(f"http://me:hunter2@{site.address}/{path}?token=hunter3")
    assert error.code is code
    assert "hunter" not in error.message


def test_a_closed_port_and_a_silent_server(site: Site) -> None:
    error = failure("http://127.0.0.1:1/v.mp4")
    assert error.message.startswith("Nothing listens at http://127.0.0.1:1/v.mp4")
    site.stall = {"/v.mp4"}
    assert failure(f"{site.url}/v.mp4", timeout=0.5).code is ErrorCode.STREAM_TIMEOUT


def test_no_tls_where_tls_was_asked_for(site: Site) -> None:
    assert failure(f"https://{site.address}/v.mp4").code is ErrorCode.STREAM_TLS_FAILED


def test_a_file_can_be_read_anywhere(site: Site, folder: Path) -> None:
    data = (folder / "plain.bin").read_bytes()
    opener = HttpOpener(f"{site.url}/plain.bin", HERE, live=False, timeout=5)
    file = opener.open_first()
    assert file.seekable()
    assert file.seek(0, 2) == len(data)
    assert file.read(10) == b""
    for place in (500_000, 500_100, 100, 1_000_000, 0, 700_000):
        assert file.seek(place) == place == file.tell()
        assert file.read(64) == data[place : place + 64]
    file.seek(-7, 2)
    assert file.read(100) == data[-7:]
    assert file.seek(-5) == -1
    opener.close()


def test_no_descriptor_is_left_behind(site: Site) -> None:
    process = psutil.Process()
    before = (threading.active_count(), process.num_fds())
    for _ in range(5):
        numbers(f"{site.url}/v.mp4")
        failure(f"{site.url}/none.mp4")
    # the server's own side of each connection ends in a thread of its own
    limit = threading.Event()
    for _ in range(100):
        if (threading.active_count(), process.num_fds()) == before:
            break
        limit.wait(0.05)
    assert (threading.active_count(), process.num_fds()) == before
