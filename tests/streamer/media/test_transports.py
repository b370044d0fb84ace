"""How video comes: RTSP over TCP and UDP, and RTMP, each from a real server."""

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import av
import psutil
import pytest
from cameras import GstCamera
from videos import number_of, write_video

from streamer.errors import ErrorCode, StreamerError
from streamer.media.source import Source, probe
from streamer.processes import stop

_NGINX = shutil.which("nginx") or "/usr/sbin/nginx"
_RTMP = Path("/usr/lib/nginx/modules/ngx_rtmp_module.so")


def udp_sockets() -> int:
    return len(psutil.Process().net_connections(kind="udp"))


def first_numbers(url: str, count: int, **arguments: object) -> tuple[list[int], int]:
    """The numbers that the first pictures show, and how many UDP sockets brought them."""
    options: dict = {"live": True, "read_timeout": 10, **arguments}
    before, numbers = udp_sockets(), []
    with Source(url, **options) as source:
        for frame in source:
            numbers.append(number_of(frame.image.to_ndarray(format="rgb24")))
            if len(numbers) == count:
                break
        return numbers, udp_sockets() - before


@pytest.mark.parametrize("transport", ["auto", "tcp", "udp"])
def test_a_camera_that_takes_both(units: Path, transport: str) -> None:
    with GstCamera(units) as camera:
        numbers, sockets = first_numbers(camera.url, 20, transport=transport)
    assert all(b == (a + 1) % 50 for a, b in pairwise(numbers))
    assert (sockets > 0) == (transport == "udp")


def test_a_camera_that_takes_udp_only(units: Path) -> None:
    with GstCamera(units, transport="udp") as camera:
        numbers, sockets = first_numbers(camera.url, 20, transport="auto")
        assert len(numbers) == 20
        assert sockets > 0
        with (
            pytest.raises(StreamerError) as caught,
            Source(camera.url, live=True, transport="tcp", read_timeout=5) as source,
        ):
            next(iter(source))
        assert caught.value.code is ErrorCode.STREAM_CONNECTION_FAILED


def test_a_camera_that_takes_tcp_only(units: Path) -> None:
    with GstCamera(units, transport="tcp") as camera:
        numbers, sockets = first_numbers(camera.url, 20, transport="auto")
    assert len(numbers) == 20
    assert sockets == 0


@pytest.fixture
def rtmp(tmp_path: Path) -> Iterator[str]:
    """nginx with its RTMP module on a free port, to which a numbered video is pushed in a loop."""
    if not (_RTMP.is_file() and os.access(_NGINX, os.X_OK)):
        pytest.skip("nginx-light and libnginx-mod-rtmp are not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "nginx.conf").write_text(
        f"load_module {_RTMP};\ndaemon off;\nmaster_process off;\n"
        f"pid {tmp_path}/nginx.pid;\nerror_log {tmp_path}/error.log;\n"
        "events { worker_connections 32; }\n"
        f"rtmp {{ server {{ listen 127.0.0.1:{port}; application live {{ live on; }} }} }}\n"
    )
    process = subprocess.Popen(
        [_NGINX, "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"rtmp://127.0.0.1:{port}/live/cam"
    # 800 kbit/s, as of a camera: it takes FFmpeg some kilobytes to see what RTMP brings
    options = {
        "crf": "-1",
        **dict.fromkeys(("b", "maxrate", "bufsize"), "800000"),
        "x264-params": "log-level=none:threads=1:nal-hrd=cbr:filler=1",
    }
    write_video(tmp_path / "v.mp4", seconds=4, options=options)
    ended = threading.Event()
    pusher = threading.Thread(target=_push, args=(tmp_path / "v.mp4", url, port, ended))
    pusher.start()
    try:
        yield url
    finally:
        ended.set()
        pusher.join(20)
        stop(process)


def _push(video: Path, url: str, port: int, ended: threading.Event) -> None:
    while not ended.is_set():  # until the server listens
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            break
        except OSError:
            ended.wait(0.05)
    offset = 0.0
    with av.open(url, "w", format="flv", options={"flush_packets": "1"}) as output:
        stream = None
        while not ended.is_set():
            began = time.monotonic()
            with av.open(str(video)) as source:
                stream = stream or output.add_stream_from_template(source.streams.video[0])
                for packet in source.demux(video=0):
                    if packet.dts is None or ended.is_set():
                        continue
                    due = float(packet.dts * packet.time_base)
                    ended.wait(max(0.0, began + due - time.monotonic()))
                    shift = round(offset / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    output.mux(packet)
            offset += 4.0


def test_rtmp(rtmp: str) -> None:
    # given a stream that is not there from the first moment on
    deadline = time.monotonic() + 30
    while True:
        try:
            info = probe(rtmp, 5)
            break
        except StreamerError:
            assert time.monotonic() < deadline
    assert (info.codec, info.width, info.height) == ("h264", 320, 240)
    numbers, _ = first_numbers(rtmp, 30)
    assert all(b == (a + 1) % 100 for a, b in pairwise(numbers))


def test_a_stream_that_nobody_pushes(rtmp: str) -> None:
    with pytest.raises(StreamerError) as caught:
        probe(rtmp.replace("cam", "none"), 1)
    assert caught.value.code in (ErrorCode.STREAM_TIMEOUT, ErrorCode.STREAM_CONNECTION_FAILED)


def test_a_webcam_that_is_not_there() -> None:
    if Path("/dev/video63").exists():
        pytest.skip("there is a webcam /dev/video63")
    with pytest.raises(StreamerError) as caught:
        probe("/dev/video63", 2)
    assert caught.value.code is ErrorCode.STREAM_NOT_FOUND
    assert "no webcam /dev/video63" in caught.value.message
