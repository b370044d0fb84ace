"""Probes of real sources, good and bad: which step fails, and what to try."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import av
import pytest

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.errors import StreamerError
from streamer.media.probe import advice
from streamer.media.probe.prober import probe
from streamer.media.probe.report import ProbeReport
from tests.support.cameras import GstCamera, SilentServer, write_units
from tests.support.rtsp_proxy import RtspProxy
from tests.support.scripted_rtsp import SDP, Request, ScriptedServer
from tests.support.videos import write_audio, write_video

PASSWORD = "p@ss/w#rd% x"
ENCODED = quote(PASSWORD, safe="")


@pytest.fixture(scope="module")
def camera(units: Path) -> Iterator[GstCamera]:
    with GstCamera(units, user="admin", password=PASSWORD, digest=True) as camera:
        yield camera


def failed(found: ProbeReport, step: str, code: str) -> str:
    """Check that `step` failed and no step before it; return the message and the advice."""
    assert not found.ok
    assert [s.name for s in found.steps if not s.ok] == [step], found.steps
    assert found.steps[-1].name == step
    assert found.error is not None
    assert found.error.code == code
    for secret in (PASSWORD, ENCODED, "hunter2"):
        assert secret not in found.model_dump_json()
    return " ".join([found.error.message, *found.advice])


def undisturbed(look: Callable[[], ProbeReport], drift: float, within: float) -> ProbeReport:
    """Probe a camera until its clock seems to drift by `drift`: once suffices, unless this machine
    is held up in these seconds."""
    for _ in range(5):
        found = look()
        if abs((found.clock_drift or 0.0) - drift) < within:
            break
    return found


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_a_camera_that_works(camera: GstCamera, transport: str) -> None:
    url = f"rtsp://admin:{ENCODED}@{camera.address}"
    found = undisturbed(
        lambda: probe(url, transport=transport, watch=4.2),  # type: ignore[arg-type]
        drift=0.0,
        within=0.05,
    )

    assert found.ok, found
    assert found.error is None
    assert [step.name for step in found.steps] == [
        "name",
        "connect",
        "describe",
        "set up",
        "open",
        "first picture",
    ]
    assert (found.transport, found.auth, found.format) == (transport, "Digest", "rtsp")
    assert (found.codec, found.profile, found.pixel_format) == (
        "h264",
        "Constrained Baseline",
        "yuv420p",
    )
    assert (found.width, found.height) == (320, 240)
    assert found.fps == pytest.approx(25, abs=2.0)
    assert found.gop_frames in (12, 13)  # the file's last group is shorter
    assert found.gop_seconds == pytest.approx(0.48, abs=0.1)
    assert found.bit_rate
    assert found.bit_rate > 10_000
    assert "GStreamer" in (found.server or "")
    assert abs(found.clock_drift or 1.0) < 0.05
    assert found.first_frame_ms
    assert found.decode_ms
    assert PASSWORD not in found.model_dump_json()


@pytest.mark.parametrize(("rate", "word"), [(0.05, "fast"), (-0.05, "slow")])
def test_a_camera_whose_clock_drifts(loopback: LoopbackCamera, rate: float, word: str) -> None:
    began, ended = time.monotonic(), threading.Event()

    def drift(line: RtspProxy) -> None:
        while not ended.wait(0.01):
            line.faults.shift = rate * (time.monotonic() - began)

    with RtspProxy(urlsplit(loopback.url).port or 0) as line:
        clock = threading.Thread(target=drift, args=(line,))
        clock.start()
        url = line.through(loopback.url)
        found = undisturbed(lambda: probe(url, watch=3.5), drift=-rate, within=0.02)
        ended.set()
        clock.join()
    assert found.ok
    assert found.clock_drift == pytest.approx(-rate, abs=0.02)
    assert any(word in said for said in found.advice)


def test_hevc_without_a_login(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=1, codec="libx265")
    with GstCamera(write_units([tmp_path / "v.mp4"], tmp_path / "v.units")) as camera:
        found = probe(camera.url, watch=0.5)
    assert (found.ok, found.codec, found.auth) == (True, "hevc", None)


def test_a_recording(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=2, gop=25, b_frames=2)
    found = probe(str(tmp_path / "v.mp4"))
    assert found.ok
    assert [step.name for step in found.steps] == ["open", "first picture"]
    assert (found.live, found.frames, found.duration) == (False, 50, pytest.approx(2.0))
    assert (found.gop_frames, found.fps) == (25, pytest.approx(25))
    assert (found.clock_drift, found.transport, found.auth) == (None, None, None)
    assert found.bit_rate
    assert not found.interlaced


def test_an_interlaced_recording(tmp_path: Path) -> None:
    options = {"flags": "+ilme+ildct", "x264-params": "tff=1:log-level=none"}
    write_video(tmp_path / "v.mp4", seconds=1, options=options)
    assert probe(str(tmp_path / "v.mp4")).interlaced


def test_a_login_is_asked_for(camera: GstCamera) -> None:
    said = failed(probe(camera.url), "describe", "STREAM_AUTH_FAILED")
    assert "requires a user name and password (Digest login)" in said
    assert "rtsp://user:password@host" in said


def test_a_wrong_password(camera: GstCamera) -> None:
    said = failed(probe(f"rtsp://admin:hunter2@{camera.address}"), "describe", "STREAM_AUTH_FAILED")
    assert "refused the user name or password" in said
    assert "lock an account" in said


def test_a_wrong_path_gets_examples(camera: GstCamera) -> None:
    found = probe(f"rtsp://admin:{ENCODED}@127.0.0.1:{camera.port}/none")
    said = failed(found, "describe", "STREAM_NOT_FOUND")
    assert "Examples of paths" in said
    assert all(path in said for path in advice.PATHS.values())


def test_no_tls(camera: GstCamera) -> None:
    said = failed(probe(f"rtsps://u:hunter2@{camera.address}"), "encrypt", "STREAM_TLS_FAILED")
    assert "use rtsp://" in said


def test_a_host_that_is_unknown() -> None:
    said = failed(probe("rtsp://u:hunter2@nowhere.invalid/x"), "name", "STREAM_CONNECTION_FAILED")
    assert "'nowhere.invalid' is unknown" in said
    assert "IP address" in said


def test_a_closed_port_and_an_open_one_beside_it() -> None:
    said = failed(probe("rtsp://u:hunter2@127.0.0.1:1/x"), "connect", "STREAM_CONNECTION_FAILED")
    assert "Nothing listens" in said
    assert "554" in said
    try:
        beside = socket.create_server(("127.0.0.1", 8554))
    except OSError:
        pytest.skip("port 8554 is taken on this machine")
    with beside:
        found = probe("rtsp://127.0.0.1:1/x")
    assert found.advice == ["Port 8554 of the same host is open: try the URL with :8554."]


def test_one_that_accepts_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.media.probe.prober.MAX_STEP_SECONDS", 0.3)
    monkeypatch.setattr("streamer.media.probe.prober.MAX_OPEN_SECONDS", 0.5)
    with SilentServer() as server:
        said = failed(
            probe(f"rtsp://u:hunter2@127.0.0.1:{server.port}/x"), "describe", "STREAM_TIMEOUT"
        )
        assert "open and silent" in said
        failed(probe(f"rtmp://u:hunter2@127.0.0.1:{server.port}/x"), "open", "STREAM_TIMEOUT")


def test_one_that_never_ends_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    # given a server that sends byte by byte, so that no socket timeout expires
    monkeypatch.setattr("streamer.media.probe.prober.MAX_STEP_SECONDS", 0.5)
    with SilentServer(dribble=True) as server:
        url = f"rtsp://u:hunter2@127.0.0.1:{server.port}/x"
        assert "open and silent" in failed(probe(url), "describe", "STREAM_TIMEOUT")


def test_a_web_server_is_no_camera() -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        found = probe(f"rtsp://u:hunter2@127.0.0.1:{server.server_port}/x")
        server.shutdown()
        thread.join()
    said = failed(found, "describe", "STREAM_CONNECTION_FAILED")
    assert "check the port" in said


def answer(status: int, **headers: str) -> ScriptedServer:
    """A server that gives every request the same response."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ScriptedServer(lambda _: (status, named, ""))


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (403, "STREAM_AUTH_FAILED", "refused"),
        (453, "STREAM_CONNECTION_FAILED", "RTSP status 453"),
        (503, "STREAM_CONNECTION_FAILED", "how many viewers"),
    ],
)
def test_other_refusals(status: int, code: str, words: str) -> None:
    with answer(status, Server="Cam/1.0") as server:
        found = probe(f"rtsp://u:hunter2@127.0.0.1:{server.port}/x")
    assert words in failed(found, "describe", code)
    assert found.server == "Cam/1.0"


def test_a_login_that_ffmpeg_does_not_know() -> None:
    def script(request: Request) -> tuple[int, dict[str, str], str]:
        if "authorization" in request.headers:
            return 200, {}, SDP
        return 401, {"WWW-Authenticate": 'Digest realm="r", nonce="n", algorithm=SHA-256'}, ""

    with ScriptedServer(script) as server:
        found = probe(f"rtsp://u:hunter2@127.0.0.1:{server.port}/x")
    assert "Digest (MD5) or Basic" in failed(found, "describe", "STREAM_AUTH_FAILED")


def test_sound_alone() -> None:
    with ScriptedServer(lambda _: (200, {}, "v=0\r\nm=audio 0 RTP/AVP 0\r\n")) as server:
        found = probe(f"rtsp://127.0.0.1:{server.port}/x")
    failed(found, "description", "STREAM_NO_VIDEO")


def test_granted_and_then_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera with its maximum number of viewers, or UDP behind a firewall."""
    monkeypatch.setattr("streamer.media.probe.prober.MAX_OPEN_SECONDS", 1.0)

    def script(request: Request) -> tuple[int, dict[str, str], str]:
        if request.method == "DESCRIBE":
            return 200, {"Content-Type": "application/sdp"}, SDP
        return 200, {"Session": "1", "Transport": request.headers.get("transport", "")}, ""

    with ScriptedServer(script) as server:
        found = probe(f"rtsp://127.0.0.1:{server.port}/x")
    # FFmpeg may count the session as open
    said = failed(found, found.steps[-1].name, "STREAM_TIMEOUT")
    assert found.steps[-1].name in {"open", "first picture"}
    assert "sent nothing" in said
    assert "try `--transport udp`" in said


def test_key_frames_that_never_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.media.probe.prober.MAX_OPEN_SECONDS", 4.0)
    write_video(tmp_path / "whole.mp4", seconds=4, gop=1000)
    with (
        av.open(str(tmp_path / "whole.mp4")) as whole,
        av.open(str(tmp_path / "keyless.mp4"), "w") as keyless,
    ):
        stream = keyless.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size and not packet.is_keyframe:
                packet.stream = stream
                keyless.mux(packet)
    with LoopbackCamera(tmp_path / "keyless.mp4") as camera:
        found = probe(camera.url, limit=12.0)
    assert "key frame interval" in failed(found, "first picture", "STREAM_TIMEOUT")
    assert found.advice == []  # video came: neither the transport nor other viewers are to blame


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    write_audio(tmp_path / "a.m4a")
    failed(probe(str(tmp_path / "a.m4a")), "open", "STREAM_NO_VIDEO")
    failed(probe(str(tmp_path / "absent.mp4")), "open", "STREAM_NOT_FOUND")


def test_addresses_that_are_none() -> None:
    for source in ("gopher://h/x", "", "rtsp://"):
        with pytest.raises(StreamerError):
            probe(source)


def test_it_ends_in_time_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    """All steps together take no longer than the limit."""

    released, resolved = threading.Event(), threading.Event()

    def slow(*_args: object, **_kwargs: object) -> list[object]:
        released.wait(600)
        resolved.set()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    try:
        found = probe("rtsp://cam.example/x", limit=1.5)
        assert not resolved.is_set()
    finally:
        released.set()
    assert "use the camera's IP address" in failed(found, "name", "STREAM_TIMEOUT")


def test_advice_for_what_could_be_better() -> None:
    good = ProbeReport(
        url="u", live=True, ok=True, gop_seconds=1.0, fps=25.0, claimed_fps=25.0, frames=9
    )
    assert advice.after_success(good) == []
    changes: list[tuple[dict[str, object], str]] = [
        ({"gop_seconds": 10.0}, "every 10 s"),
        ({"gop_seconds": None}, "No second key frame"),
        ({"clock_drift": 0.02}, "2.0% slow"),
        ({"clock_drift": -0.02}, "2.0% fast"),
        ({"damaged": 3, "transport": "udp"}, "--transport tcp"),
        ({"fps": 10.0}, "announces 25"),
    ]
    for change, words in changes:
        (said,) = advice.after_success(good.model_copy(update=change))
        assert words in said
