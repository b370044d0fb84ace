"""The reason why an RTSP source cannot be opened: `attach` and the stream's state name the one that
`probe` finds."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.errors import ErrorCode, StreamerError
from streamer.media import rtsp_diagnosis
from streamer.media.access_policy import AccessPolicy
from streamer.media.probe.prober import probe
from streamer.media.source import inspect_source
from tests.support.cameras import GstCamera
from tests.support.rtsp_proxy import RtspProxy
from tests.support.scripted_rtsp import SDP, Request, Script, ScriptedServer

BASIC = 'Basic realm="r"'
MD5, SHA = (f'Digest realm="r", nonce="n", algorithm={name}' for name in ("MD5", "SHA-256"))


@pytest.fixture(autouse=True)
def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rtsp_diagnosis, "_memory", rtsp_diagnosis._Memory())


def reasons(script: Script, user: str = "u:hunter2@") -> list[StreamerError]:
    """The errors of attaching and of probing a source at a server with this script."""
    with ScriptedServer(script) as server:
        url = f"rtsp://{user}127.0.0.1:{server.port}/live"
        with pytest.raises(StreamerError) as attached:
            inspect_source(url, timeout=3.0)
        probed = probe(url, limit=8.0)
    assert probed.error is not None
    assert "hunter2" not in attached.value.message + probed.model_dump_json()
    return [attached.value, StreamerError(probed.error.code, probed.error.message)]


def granting(request: Request) -> tuple[int, dict[str, str], str]:
    """The answers of a camera that lets anybody watch."""
    if request.method == "DESCRIBE":
        return 200, {"Content-Type": "application/sdp"}, SDP
    return 200, {"Session": "1", "Transport": request.headers.get("transport", "")}, ""


def requiring(*offers: str, accept: bool = True) -> Script:
    """A script that offers these logins, and accepts any or none."""

    def script(request: Request) -> tuple[int, dict[str, str], str]:
        if accept and "authorization" in request.headers:
            return granting(request)
        return 401, {"WWW-Authenticate": "\r\nWWW-Authenticate: ".join(offers)}, ""

    return script


@pytest.mark.parametrize(
    "offers", [(SHA,), (MD5, SHA), (BASIC, SHA), (SHA, BASIC), ("Bearer x=1",)], ids=str
)
def test_a_login_method_that_is_not_supported(offers: tuple[str, ...]) -> None:
    for error in reasons(requiring(*offers)):
        assert error.code is ErrorCode.STREAM_AUTH_FAILED
        assert "login method that is not supported" in error.message
        assert "Digest (MD5) or Basic" in error.message


@pytest.mark.parametrize("offers", [(SHA,), (MD5, SHA), (MD5,), (BASIC,)], ids=str)
def test_a_wrong_password_is_not_taken_for_another_reason(offers: tuple[str, ...]) -> None:
    for error in reasons(requiring(*offers, accept=False)):
        assert error.code is ErrorCode.STREAM_AUTH_FAILED
        assert "refused the user name or password" in error.message


@pytest.mark.parametrize("offers", [(SHA,), (MD5, SHA), (MD5,), (BASIC,)], ids=str)
def test_no_login_given(offers: tuple[str, ...]) -> None:
    for error in reasons(requiring(*offers), user=""):
        assert error.code is ErrorCode.STREAM_AUTH_FAILED
        assert "requires a user name and password" in error.message


@pytest.mark.parametrize("method", ["DESCRIBE", "SETUP", "PLAY"])
@pytest.mark.parametrize("status", [400, 451, 453, 455, 459, 461, 500, 503, 551, 499])
def test_a_request_that_is_refused(method: str, status: int) -> None:
    def script(request: Request) -> tuple[int, dict[str, str], str]:
        return (status, {}, "") if request.method == method else granting(request)

    attached, probed = reasons(script)
    assert attached.code is ErrorCode.STREAM_CONNECTION_FAILED
    assert f"RTSP status {status}" in attached.message
    assert "cannot be reached" not in attached.message
    if (method, status) != ("PLAY", 461):
        assert probed.message == attached.message


@pytest.mark.parametrize(("refused", "other"), [("tcp", "udp"), ("udp", "tcp")])
def test_a_transport_that_is_refused(refused: str, other: str) -> None:
    def script(request: Request) -> tuple[int, dict[str, str], str]:
        over_tcp = "TCP" in request.headers.get("transport", "")
        if request.method == "SETUP" and over_tcp == (refused == "tcp"):
            return 461, {}, ""
        return granting(request)

    with ScriptedServer(script) as server, pytest.raises(StreamerError) as caught:
        inspect_source(f"rtsp://127.0.0.1:{server.port}/x", timeout=3.0, transport=refused)  # type: ignore[arg-type]
    assert f"the transport {refused} (RTSP status 461)" in caught.value.message
    assert f"{other} or auto" in caught.value.message


def test_a_server_is_not_asked_at_each_attempt() -> None:
    """Each attempt with a wrong password counts at a camera that locks out who guesses."""
    with ScriptedServer(requiring(MD5, accept=False)) as server:
        url = f"rtsp://u:hunter2@127.0.0.1:{server.port}/live"
        counts = []
        for _ in range(3):
            before = len(server.requests)
            with pytest.raises(StreamerError, match="refused the user name"):
                inspect_source(url, timeout=3.0)
            counts.append(len(server.requests) - before)
    assert counts[0] > counts[1] == counts[2]


@pytest.mark.parametrize("offer", [MD5, BASIC])
def test_a_user_without_a_password(offer: str) -> None:
    with ScriptedServer(requiring(offer)) as server:
        for user in ("admin@", "admin:@"):
            server.requests.clear()
            for timeout in (1.0, 10.0):  # a busy machine needs longer
                with pytest.raises(StreamerError, match="sent nothing"):  # it is let in
                    inspect_source(f"rtsp://{user}127.0.0.1:{server.port}/live", timeout=timeout)
                if let_in := any("authorization" in each.headers for each in server.requests):
                    break
            assert let_in


def redirecting(status: int, location: str | None) -> Script:
    def script(request: Request) -> tuple[int, dict[str, str], str]:
        if request.method == "OPTIONS":
            return 200, {"Public": "DESCRIBE"}, ""
        return status, {"Location": location} if location is not None else {}, ""

    return script


@pytest.fixture(scope="module")
def camera(units: Path) -> Iterator[GstCamera]:
    with GstCamera(units, user="admin", password="hunter2", digest=True) as camera:
        yield camera


@pytest.mark.parametrize(
    "status", [302, *(pytest.param(s, marks=pytest.mark.slow) for s in (301, 303, 305, 307, 308))]
)
def test_a_redirect_is_followed(camera: GstCamera, status: int) -> None:
    with ScriptedServer(redirecting(status, camera.url)) as server:
        url = f"rtsp://admin:hunter2@127.0.0.1:{server.port}/old"
        assert inspect_source(url, timeout=8.0).codec == "h264"
        if status == 302:
            found = probe(url, watch=0.5)
            assert found.ok, found
            assert "redirect" in [step.name for step in found.steps]
            assert "hunter2" not in found.model_dump_json()


def test_a_relative_redirect_is_followed() -> None:
    def script(request: Request) -> tuple[int, dict[str, str], str]:
        if request.method == "DESCRIBE" and request.address.endswith("/live"):
            return 302, {"Location": "/new"}, ""
        return granting(request)

    for error in reasons(script):
        assert "sent nothing" in error.message  # the session was granted, at the new address


@pytest.mark.parametrize(
    "location", ["file:///etc/passwd", "http://127.0.0.1:1/x", "", "rtmp://h/x", None]
)
def test_a_redirect_leads_nowhere_else(location: str | None) -> None:
    with ScriptedServer(redirecting(302, location)) as server:
        url = f"rtsp://127.0.0.1:{server.port}/old"
        with pytest.raises(StreamerError) as caught:
            inspect_source(url, timeout=3.0)
        found = probe(url)
    assert found.error is not None
    assert caught.value.code is found.error.code
    if location:
        assert caught.value.code is ErrorCode.STREAM_URL_FORBIDDEN
        assert "rtsp:// and rtsps://" in caught.value.message
        assert found.steps[-1].name == "redirect"


def test_redirects_in_a_circle_end() -> None:
    ports: list[int] = []

    def script(request: Request) -> tuple[int, dict[str, str], str]:
        return redirecting(302, f"rtsp://127.0.0.1:{ports[0]}/again")(request)

    with ScriptedServer(script) as server:
        ports.append(server.port)
        found = probe(f"rtsp://127.0.0.1:{server.port}/old")
        finding = rtsp_diagnosis.diagnose(
            f"rtsp://127.0.0.1:{server.port}/old",
            transport="auto",
            access=AccessPolicy(),
            limit=10.0,
        )
    assert found.error is not None
    assert finding.error is not None
    assert found.error.message == finding.error.message
    assert "redirects in a circle" in found.error.message
    assert len(server.requests) == 2 * (rtsp_diagnosis.MAX_REDIRECTS + 1)


@pytest.mark.parametrize(
    "endless",
    [b"$\0\0\4data" * 128, b"RTSP/1.0 100 Continue"[:1]],
    ids=["packets before the answer", "a byte now and then"],
)
def test_a_server_that_never_ends_its_answer_is_left_in_time(endless: bytes) -> None:
    # given a server that keeps sending what no limit of lines and bodies ends
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    stop = threading.Event()

    def serve() -> None:
        client, _ = listener.accept()
        with client, contextlib.suppress(OSError):
            client.recv(4096)
            while not stop.wait(0.01):
                client.sendall(endless)

    server = threading.Thread(target=serve)
    server.start()
    # when it is asked why it sends no video
    with listener:
        finding = rtsp_diagnosis.diagnose(
            f"rtsp://127.0.0.1:{port}/x", transport="auto", access=AccessPolicy(), limit=0.5
        )
    # then it had its time, although there was never a silence
    stop.set()
    server.join()
    assert finding.error is not None
    assert finding.error.code is ErrorCode.STREAM_TIMEOUT


@pytest.mark.parametrize(
    "status", [301, *(pytest.param(s, marks=pytest.mark.slow) for s in (302, 303, 307, 308))]
)
def test_two_servers_that_redirect_to_each_other_are_told_at_opening(status: int) -> None:
    ports: list[int] = []

    def to(number: int) -> Script:
        return lambda request: redirecting(status, f"rtsp://127.0.0.1:{ports[number]}/x")(request)

    with ScriptedServer(to(1)) as first, ScriptedServer(to(0)) as second:
        ports += [first.port, second.port]
        with pytest.raises(StreamerError, match="redirects in a circle"):
            inspect_source(f"rtsp://127.0.0.1:{first.port}/x", timeout=30.0)
        # it is asked a few times, not until the time is over
        assert len(first.requests) + len(second.requests) <= 4 * (rtsp_diagnosis.MAX_REDIRECTS + 1)


class SilentOnParameters(RtspProxy):
    """A camera that sends H.264 without its parameter sets, neither in its SDP nor in the video."""

    async def read_answer(self, reader: asyncio.StreamReader) -> bytes:
        data = await super().read_answer(reader)
        if not data.startswith(b"$"):
            return data.replace(b"sprop-parameter-sets", b"xprop-parameter-sets")
        channel, nal = data[1], data[16] & 0x1F if len(data) > 16 else 0
        if channel % 2 == 0 and nal in (7, 8, 24):  # SPS, PPS, and packets of several units
            return b""
        return data


def test_video_without_parameter_sets_is_named(loopback: LoopbackCamera) -> None:
    port = urlsplit(loopback.url).port
    assert port is not None
    with SilentOnParameters(port) as camera:
        url = camera.through(loopback.url)
        for timeout in (1.5, 15.0):  # a busy machine needs longer
            with pytest.raises(StreamerError) as attached:
                inspect_source(url, timeout=timeout)
            if attached.value.code is not ErrorCode.STREAM_TIMEOUT:
                break
        for limit in (6.0, 30.0):
            probed = probe(url, limit=limit)
            if probed.error is None or probed.error.code is not ErrorCode.STREAM_TIMEOUT:
                break
    assert probed.error is not None
    for code, message in (
        (attached.value.code, attached.value.message),
        (probed.error.code, probed.error.message),
    ):
        assert code is ErrorCode.STREAM_CODEC_UNSUPPORTED
        assert "without its parameter sets (SPS and PPS)" in message
