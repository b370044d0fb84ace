"""RtspSession against a real server for logins, and a scripted one for unusual responses."""

import contextlib
import socket
import threading
from pathlib import Path
from urllib.parse import quote

import pytest

from streamer.media.rtsp_session import NotRtspError, RtspSession, read_description
from tests.support.cameras import GstCamera
from tests.support.scripted_rtsp import SDP, Request, ScriptedServer

PASSWORD = "p@ss/w#rd% x"


def session(camera: GstCamera, credentials: str = "") -> RtspSession:
    connection = socket.create_connection(("127.0.0.1", camera.port), 5)
    return RtspSession(connection, f"rtsp://{credentials}{camera.address}")


@pytest.mark.parametrize("digest", [False, True])
def test_logging_in(units: Path, digest: bool) -> None:
    with GstCamera(units, user="admin", password=PASSWORD, digest=digest) as camera:
        with session(camera, f"admin:{quote(PASSWORD, safe='')}@") as talk:
            assert talk.options().ok
            answer = talk.describe()
            assert answer.status == 200
            assert talk.auth == ("Digest" if digest else "Basic")
            assert talk.can_log_in()
            described = read_description(answer, talk.url)
            assert described.video is not None
            assert described.video.codec == "H264"
            assert talk.setup(described, described.video, "udp").ok
            assert "@" not in talk.url
        for credentials in ("", "admin:hunter2@", "somebody:@"):
            with session(camera, credentials) as talk:
                assert talk.describe().status == 401
                assert talk.auth is not None


def test_sha256_is_answered_and_known_to_be_beyond_ffmpeg() -> None:
    challenge = 'Digest realm="r", nonce="n", algorithm=SHA-256, qop="auth,auth-int"'

    def script(request: Request) -> tuple[int, dict[str, str], str]:
        if "authorization" not in request.headers:
            return 401, {"WWW-Authenticate": challenge}, ""
        return 200, {}, SDP

    with ScriptedServer(script) as server:
        with RtspSession(server.connect(), f"rtsp://u:p@127.0.0.1:{server.port}/x") as talk:
            assert talk.describe().ok
            assert not talk.can_log_in()
        sent = server.requests[-1].headers["authorization"]
    assert "algorithm=SHA-256" in sent
    assert "qop=auth, nc=00000001" in sent


def test_a_digest_is_what_md5sum_makes_it() -> None:
    """The form without qop, as in older cameras."""

    def script(request: Request) -> tuple[int, dict[str, str], str]:
        if "authorization" not in request.headers:
            return 401, {"WWW-Authenticate": 'Digest realm="r@h", nonce="dcd98b"'}, ""
        return 200, {}, ""

    with ScriptedServer(script) as server:
        with RtspSession(server.connect(), "rtsp://Mufasa:Circle@cam/dir") as talk:
            assert talk.describe().ok
        sent = server.requests[-1].headers["authorization"]
    # md5(md5("Mufasa:r@h:Circle") + ":dcd98b:" + md5("DESCRIBE:rtsp://cam/dir")), by md5sum
    assert 'response="37f9b067926df934e073369a8fe7ea72"' in sent


def test_a_wrong_password_is_not_tried_for_ever() -> None:
    challenge = {"WWW-Authenticate": 'Basic realm="r"'}
    with ScriptedServer(lambda _: (401, challenge, "")) as server:
        with RtspSession(server.connect(), "rtsp://u:p@cam/x") as talk:
            assert talk.describe().status == 401
            assert talk.describe().status == 401
        assert len(server.requests) == 3


def test_controls_are_joined_and_a_granted_session_is_given_back() -> None:
    def script(request: Request) -> tuple[int, dict[str, str], str]:
        if request.method == "DESCRIBE":
            return 200, {"Content-Base": "rtsp://cam/live?channel=1/"}, SDP
        if request.method == "SETUP" and "TCP" in request.headers["transport"]:
            return 461, {}, ""
        return 200, {"Session": "42;timeout=60"}, ""

    with ScriptedServer(script) as server:
        with RtspSession(server.connect(), "rtsp://cam/live?channel=1") as talk:
            described = read_description(talk.describe(), talk.url)
            assert [track.kind for track in described.tracks] == ["audio", "video"]
            assert described.video is not None
            assert talk.setup(described, described.video, "tcp").status == 461
            assert talk.setup(described, described.video, "udp").ok
        setup, teardown = server.requests[-2:]
    assert setup.address == "rtsp://cam/live?channel=1/v?x=1"
    assert (teardown.method, teardown.headers["session"]) == ("TEARDOWN", "42")


@pytest.mark.parametrize(
    ("said", "speaks"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
        (b"SSH-2.0-OpenSSH_9\r\n", None),
        (b"RTSP/1.0 what\r\n\r\n", None),
        (b"RTSP/1.0 200 OK\r\nContent-Length: lots\r\n\r\n", None),
        (b"\x00" * 20_000, None),
    ],
)
def test_what_is_no_rtsp(said: bytes, speaks: str | None) -> None:
    ours, theirs = socket.socketpair()
    ours.settimeout(5)

    def answer() -> None:
        with theirs:
            theirs.recv(4096)
            theirs.sendall(said)

    sender = threading.Thread(target=answer)
    sender.start()
    with RtspSession(ours, "rtsp://cam/x") as talk, pytest.raises(NotRtspError) as caught:
        talk.describe()
    sender.join()
    assert caught.value.speaks == speaks


@pytest.mark.parametrize(
    ("begin", "again"),
    [
        (b"", b"\0" * 1024),
        (b"RTSP/1.0 200 O", b"K" * 1024),
        (b"RTSP/1.0 200 OK\r\nServer: ", b"x" * 1024),
        (b"RTSP/1.0 200 OK\r\n", b"X-Header: value\r\n" * 64),
    ],
    ids=["no line", "status line", "header", "headers"],
)
def test_an_answer_without_end_is_left(begin: bytes, again: bytes) -> None:
    # given a peer that goes on until its connection is closed
    ours, theirs = socket.socketpair()
    sent = [0]

    def flood() -> None:
        with theirs, contextlib.suppress(OSError):
            theirs.recv(4096)
            theirs.sendall(begin)
            while True:
                theirs.sendall(again)
                sent[0] += len(again)

    sender = threading.Thread(target=flood)
    sender.start()
    # when it is asked
    with RtspSession(ours, "rtsp://cam/x") as talk, pytest.raises(NotRtspError):
        talk.describe()
    # then only so much of it was read, beside what the sockets hold
    sender.join()
    assert sent[0] < 2 << 20


def test_one_that_hangs_up_and_one_that_is_silent() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    with RtspSession(ours, "rtsp://cam/x") as talk, pytest.raises(ConnectionError):
        talk.describe()
    ours, theirs = socket.socketpair()
    ours.settimeout(0.1)
    with theirs, RtspSession(ours, "rtsp://cam/x") as talk, pytest.raises(TimeoutError):
        talk.describe()
