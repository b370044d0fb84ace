"""rtsps, rtmps and https from servers that speak TLS: frames, refusals and messages."""

import socket
import ssl
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import quote

import av
import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.media import source, tls
from streamer.media.access_policy import AccessPolicy
from streamer.media.probe.prober import probe
from streamer.media.probe.report import ProbeReport
from streamer.media.source import Source
from tests.support.cameras import GstCamera, SilentServer
from tests.support.rtmp_server import RtmpServer
from tests.support.tls_front import Authority, TlsFront
from tests.support.videos import number_of, write_video
from tests.support.web import Site

PASSWORD = "p@ss/w#rd% x"
USER = f"admin:{quote(PASSWORD, safe='')}"
HERE = AccessPolicy(hosts=("127.0.0.1", "localhost"))
UNCHECKED = AccessPolicy(hosts=HERE.hosts, verify=False)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Path:
    return authority.issue(["localhost", "127.0.0.1"])


@pytest.fixture(scope="module")
def camera(units: Path) -> Iterator[GstCamera]:
    with GstCamera(units, user="admin", password=PASSWORD, digest=True) as camera:
        yield camera


@pytest.fixture
def front(camera: GstCamera, certificate: Path) -> Iterator[TlsFront]:
    """The camera's encrypted port."""
    with TlsFront(camera.port, certificate) as front:
        yield front


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording, as a file and as a playlist."""
    folder = tmp_path_factory.mktemp("site")
    write_video(folder / "v.mp4", seconds=2, gop=25, width=160, height=120)
    with (
        av.open(str(folder / "v.mp4")) as video,
        av.open(str(folder / "v.m3u8"), "w", format="hls", options={"hls_time": "1"}) as playlist,
    ):
        stream = playlist.add_stream_from_template(video.streams.video[0])
        for packet in video.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                playlist.mux(packet)
    return folder


@pytest.fixture
def site(folder: Path) -> Iterator[Site]:
    with Site(folder) as site:
        yield site


@pytest.fixture
def secure(site: Site, certificate: Path) -> Iterator[str]:
    """The site over https, under its name."""
    with TlsFront(site.port, certificate) as front:
        yield f"localhost:{front.port}"


def numbers(url: str, count: int | None = None, **arguments: Any) -> list[int]:
    options: dict[str, Any] = {"live": False, "access": HERE, "read_timeout": 10, **arguments}
    found: list[int] = []
    with Source(url, **options) as opened:
        for frame in opened:
            found.append(number_of(frame.image.to_ndarray(format="rgb24")))
            if len(found) == count:
                break
    return found


def failure(url: str, access: AccessPolicy = HERE, timeout: float = 5.0) -> StreamerError:
    with pytest.raises(StreamerError) as caught:
        source.inspect_source(url, timeout, access)
    for secret in ("hunter2", PASSWORD, quote(PASSWORD, safe="")):
        assert secret not in str(caught.value)
    return caught.value


def failed_step(found: ProbeReport) -> str:
    """Return the failed step; check that the report contains no password."""
    assert not found.ok
    for secret in ("hunter2", PASSWORD, quote(PASSWORD, safe="")):
        assert secret not in found.model_dump_json()
    (step,) = (step for step in found.steps if not step.ok)
    return step.name


# Cameras


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_camera_over_tls_with_a_certificate_of_its_own(front: TlsFront, host: str) -> None:
    # given a self-signed certificate, as cameras have
    found = numbers(f"rtsps://{USER}@{host}:{front.port}/cam", 20, live=True)
    assert len(found) == 20
    assert all(b == (a + 1) % 50 for a, b in pairwise(found))


def test_a_line_that_is_cut_is_a_lost_connection(front: TlsFront) -> None:
    with Source(f"rtsps://{USER}@127.0.0.1:{front.port}/cam", live=True) as opened:
        frames = iter(opened)
        next(frames)
        front.hang_up()
        with pytest.raises(StreamerError) as caught:
            list(frames)
    assert caught.value.code is ErrorCode.STREAM_CONNECTION_FAILED


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("rtsps://admin:hunter2@127.0.0.1:{port}/cam", ErrorCode.STREAM_AUTH_FAILED),
        ("rtsps://127.0.0.1:{port}/cam", ErrorCode.STREAM_AUTH_FAILED),
        (f"rtsps://{USER}@127.0.0.1:{{port}}/none", ErrorCode.STREAM_NOT_FOUND),
    ],
)
def test_refusals_are_told_apart(front: TlsFront, url: str, code: ErrorCode) -> None:
    url = url.format(port=front.port)
    assert failure(url).code is code
    found = probe(url)
    assert failed_step(found) == "describe"
    assert found.error is not None
    assert found.error.code == code


@pytest.mark.parametrize("old", [False, True])
def test_a_probe_of_a_camera_over_tls(camera: GstCamera, certificate: Path, old: bool) -> None:
    if old and not ssl.HAS_TLSv1:
        pytest.skip("this OpenSSL has no TLS 1.0 to play an old camera with")
    with TlsFront(camera.port, certificate, old=old) as front:
        url = f"rtsps://{USER}@127.0.0.1:{front.port}/cam"
        found = probe(url, transport="udp", watch=0.2)
    assert found.ok, found
    steps = {step.name: step for step in found.steps}
    assert list(steps) == ["name", "connect", "encrypt", "describe", "set up", *list(steps)[-2:]]
    assert (steps["encrypt"].detail == "TLSv1") == old
    # then the report names the transport: encrypted video never uses UDP
    assert (found.transport, steps["set up"].detail) == ("tcp", "tcp")
    assert (found.codec, found.auth) == ("h264", "Digest")
    assert PASSWORD not in found.model_dump_json()


def test_an_encrypted_port_that_is_taken_for_a_plain_one(front: TlsFront) -> None:
    for scheme in ("rtsp", "rtmp"):
        url = f"{scheme}://admin:hunter2@127.0.0.1:{front.port}/cam/x"
        error = failure(url)
        assert error.code is ErrorCode.STREAM_CONNECTION_FAILED
        assert f"use {scheme}s://" in error.message
        found = probe(url)
        assert failed_step(found) in {"describe", "open"}
        assert f"use {scheme}s://" in found.error.message if found.error else False


@pytest.mark.parametrize("scheme", ["rtsps", "rtmps", "https"])
def test_one_that_shakes_hands_and_says_nothing(certificate: Path, scheme: str) -> None:
    with SilentServer() as server, TlsFront(server.port, certificate) as front:
        error = failure(f"{scheme}://me:hunter2@127.0.0.1:{front.port}/x/y", UNCHECKED, 0.7)
    assert error.code is ErrorCode.STREAM_TIMEOUT


def test_what_is_said_over_a_line_ends_in_time() -> None:
    def listen(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as line, tls.time_limit(line, 0.3):
            while line.recv(1):
                pass

    with SilentServer(dribble=True) as server, pytest.raises(TimeoutError):
        listen(server.port)


def test_rtmp_over_tls(tmp_path: Path, certificate: Path) -> None:
    with RtmpServer(tmp_path) as server, TlsFront(server.port, certificate) as front:
        server.wait()
        url = f"rtmps://127.0.0.1:{front.port}/live/cam"
        found = numbers(url, 20, live=True)
        assert all(b == (a + 1) % 100 for a, b in pairwise(found))
        report = probe(url, watch=0.2)
        assert report.ok, report
        assert [step.name for step in report.steps][:3] == ["name", "connect", "encrypt"]
        assert (report.codec, report.format) == ("h264", "flv")


# Web servers


@pytest.mark.parametrize("name", ["v.mp4", "v.m3u8"])
def test_https_with_an_authority_that_is_trusted(
    secure: str, authority: Authority, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    assert numbers(f"https://{secure}/{name}") == list(range(50))


def test_https_with_an_authority_that_is_not(secure: str, site: Site) -> None:
    url = f"https://me:hunter2@{secure}/v.mp4"
    for error in (failure(url), probe(url, access=HERE).error):
        assert error is not None
        assert error.code is ErrorCode.STREAM_TLS_FAILED
        assert "not signed by an authority that this machine trusts" in error.message
        assert "SSL_CERT_FILE" in error.message
        assert "https_verify" in error.message
    assert failed_step(probe(url, access=HERE)) == "encrypt"
    # then no request was sent, with or without the password
    assert not site.requests
    # and https_verify: false allows it
    assert numbers(url, access=UNCHECKED) == list(range(50))
    assert probe(url, access=UNCHECKED).ok


@pytest.mark.parametrize(
    ("names", "days", "words"),
    [
        (["localhost"], -3, "has expired: renew it"),
        (["camera.example"], 30, "is for another host"),
    ],
)
def test_certificates_that_are_not_right(
    site: Site,
    authority: Authority,
    monkeypatch: pytest.MonkeyPatch,
    names: list[str],
    days: int,
    words: str,
) -> None:
    # given an authority that is trusted
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    with TlsFront(site.port, authority.issue(names, days=days)) as front:
        url = f"https://me:hunter2@localhost:{front.port}/v.mp4"
        error = failure(url)
        found = probe(url, access=HERE)
    assert error.code is ErrorCode.STREAM_TLS_FAILED
    assert words in error.message
    assert failed_step(found) == "encrypt"
    assert found.error is not None
    assert words in found.error.message


def test_an_address_needs_a_certificate_for_the_address(
    site: Site, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    for names, right in ((["127.0.0.1"], True), (["localhost"], False)):
        with TlsFront(site.port, authority.issue(names)) as front:
            url = f"https://127.0.0.1:{front.port}/v.mp4"
            if right:
                assert numbers(url, 1) == [0]
            else:
                assert "is for another address" in failure(url).message


def test_a_list_of_authorities_that_is_not_there(
    secure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (tmp_path / "absent.pem", tmp_path / "empty.pem"):
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        error = failure(f"https://me:hunter2@{secure}/v.mp4")
        assert error.code is ErrorCode.STREAM_TLS_FAILED
        assert f"SSL_CERT_FILE ({file}) cannot be read" in error.message
        (tmp_path / "empty.pem").write_text("not a certificate")


def test_a_password_does_not_follow_a_redirect_out_of_tls(
    secure: str, site: Site, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    site.redirects = {"/a.mp4": f"{site.url}/v.mp4"}
    site.basic = ("me", "hunter2")
    assert failure(f"https://me:hunter2@{secure}/a.mp4").code is ErrorCode.STREAM_AUTH_FAILED
    # then the server itself got the password, and the target of its redirect did not
    assert {host for host, _ in site.logins} == {secure}
    assert site.requests["/v.mp4"] > 0


def test_tls_that_is_asked_for_in_plain_words(secure: str) -> None:
    error = failure(f"http://me:hunter2@{secure}/v.mp4")
    assert error.code is ErrorCode.STREAM_CONNECTION_FAILED
    assert "https://" in error.message
