"""RTSP over TCP and UDP, and RTMP, each from a real server."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import psutil
import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.media.source import Source, inspect_source
from tests.support.cameras import GstCamera
from tests.support.rtmp_server import RtmpServer
from tests.support.videos import number_of


def udp_sockets() -> int:
    return len(psutil.Process().net_connections(kind="udp"))


def first_numbers(url: str, count: int, **arguments: object) -> tuple[list[int], int]:
    """Return the numbers in the first frames, and the number of UDP sockets in use."""
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
def rtmp(tmp_path: Path) -> Iterator[RtmpServer]:
    with RtmpServer(tmp_path) as server:
        yield server


def test_rtmp(rtmp: RtmpServer) -> None:
    rtmp.wait()
    info = inspect_source(rtmp.url, 5)
    assert (info.codec, info.width, info.height) == ("h264", 320, 240)
    numbers, _ = first_numbers(rtmp.url, 30)
    assert all(b == (a + 1) % 100 for a, b in pairwise(numbers))


def test_a_stream_that_nobody_pushes(rtmp: RtmpServer) -> None:
    with pytest.raises(StreamerError) as caught:
        inspect_source(rtmp.url.replace("cam", "none"), 1)
    assert caught.value.code in (ErrorCode.STREAM_TIMEOUT, ErrorCode.STREAM_CONNECTION_FAILED)


def test_a_webcam_that_is_not_there() -> None:
    if Path("/dev/video63").exists():
        pytest.skip("there is a webcam /dev/video63")
    with pytest.raises(StreamerError) as caught:
        inspect_source("/dev/video63", 2)
    assert caught.value.code is ErrorCode.STREAM_NOT_FOUND
    assert "no webcam /dev/video63" in caught.value.message
