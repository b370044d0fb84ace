"""Faults of real RTSP cameras: gst-rtsp-server in a child process, frozen, killed or locked."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.media.access_policy import AccessPolicy
from streamer.media.source import DecodedFrame, Source, inspect_source
from streamer.media.urls import normalise
from tests.support.cameras import GstCamera, SilentServer, require_gst, write_units
from tests.support.videos import number_of, write_video

PASSWORD = "p@ss/w#rd% x"


@pytest.fixture(scope="module")
def camera(units: Path) -> Iterator[GstCamera]:
    with GstCamera(units) as camera:
        yield camera


def failure(url: str, timeout: float = 5.0) -> StreamerError:
    with pytest.raises(StreamerError) as caught:
        inspect_source(url, timeout, AccessPolicy(hosts=("127.0.0.1",)))
    return caught.value


def until_it_ends(
    source: Source, at: int, then: Callable[[], None]
) -> tuple[list[DecodedFrame], StreamerError]:
    frames: list[DecodedFrame] = []
    try:
        for frame in source:
            frames.append(frame)
            if len(frames) == at:
                then()
    except StreamerError as error:
        return frames, error
    pytest.fail("it ended without an error")


def test_a_camera_is_decoded_in_real_time(camera: GstCamera) -> None:
    for _ in range(5):  # once suffices, unless this machine is held up in that second
        frames: list[DecodedFrame] = []
        with Source(camera.url, live=True) as source:
            for frame in source:
                frames.append(frame)
                if len(frames) == 40:
                    break
            assert source.info.codec == "h264"
            assert source.info.duration is None
        offsets = [frame.time - frame.pts for frame in frames[2:]]
        if max(offsets) - min(offsets) < 1.0:
            break
    numbers = [number_of(frame.image.to_ndarray(format="rgb24")) for frame in frames]
    assert all(b == (a + 1) % 50 for a, b in pairwise(numbers))
    # then frames that FFmpeg buffered while opening have the right wall clock too
    assert abs(frames[-1].time - time.time()) < 30
    assert max(offsets) - min(offsets) < 1.0


def test_hevc(tmp_path: Path) -> None:
    require_gst()
    write_video(tmp_path / "v.mp4", seconds=1, codec="libx265")
    with GstCamera(write_units([tmp_path / "v.mp4"], tmp_path / "v.units")) as camera:
        info = inspect_source(camera.url)
    assert (info.codec, info.width, info.height) == ("hevc", 320, 240)


def test_a_size_that_changes_in_mid_stream(tmp_path: Path) -> None:
    require_gst()
    write_video(tmp_path / "a.mp4", seconds=1)
    write_video(tmp_path / "b.mp4", seconds=1, width=480, height=272)
    units = write_units([tmp_path / "a.mp4", tmp_path / "b.mp4"], tmp_path / "v.units")
    sizes = []
    with GstCamera(units) as camera, Source(camera.url, live=True) as source:
        for frame in source:
            sizes.append((frame.image.width, frame.image.height))
            if len(sizes) == 45:
                break
    assert set(sizes) == {(320, 240), (480, 272)}


@pytest.mark.parametrize("digest", [False, True])
def test_a_password_with_odd_characters_opens(units: Path, digest: bool) -> None:
    with GstCamera(units, user="admin", password=PASSWORD, digest=digest) as camera:
        for url in (
            f"rtsp://admin:{quote(PASSWORD, safe='')}@{camera.address}",
            f"rtsp://admin:{PASSWORD}@{camera.address}",
        ):
            assert inspect_source(normalise(url)).codec == "h264"
        for url, words in (
            (camera.url, "requires a user name and password"),
            (f"rtsp://admin:hunter2@{camera.address}", "check them in the URL"),
        ):
            error = failure(url)
            assert error.code is ErrorCode.STREAM_AUTH_FAILED
            assert words in error.message
            assert "hunter2" not in error.message


def test_a_path_that_is_not_there(camera: GstCamera) -> None:
    error = failure(f"rtsp://me:hunter2@127.0.0.1:{camera.port}/none")
    assert error.code is ErrorCode.STREAM_NOT_FOUND
    assert "hunter2" not in error.message


def test_a_port_that_is_closed() -> None:
    error = failure("rtsp://me:hunter2@127.0.0.1:1/x")
    assert error.code is ErrorCode.STREAM_CONNECTION_FAILED
    assert error.message.startswith("Nothing listens at rtsp://me:***@127.0.0.1:1/x")


def test_a_host_that_is_unknown() -> None:
    error = failure("rtsp://me:hunter2@nowhere.invalid/x")
    assert error.code is ErrorCode.STREAM_CONNECTION_FAILED
    assert "'nowhere.invalid' is unknown" in error.message


def test_no_tls_where_tls_was_asked_for(camera: GstCamera) -> None:
    error = failure(f"rtsps://me:hunter2@{camera.address}")
    assert error.code is ErrorCode.STREAM_TLS_FAILED
    assert "use rtsp://" in error.message
    assert "hunter2" not in error.message


def test_something_that_is_no_camera(camera: GstCamera) -> None:
    error = failure(f"http://me:hunter2@{camera.address}")
    assert error.code is ErrorCode.STREAM_CONNECTION_FAILED
    assert "hunter2" not in error.message


@pytest.mark.parametrize("scheme", ["rtsp", "rtsps", "http", "https", "rtmp", "rtmps"])
def test_one_that_accepts_and_says_nothing(scheme: str) -> None:
    before = threading.active_count()
    with SilentServer() as server:
        error = failure(f"{scheme}://me:hunter2@127.0.0.1:{server.port}/x", timeout=1.5)
        assert error.code is ErrorCode.STREAM_TIMEOUT
        assert "hunter2" not in error.message
        assert server.accepted
    deadline = time.monotonic() + 120
    while threading.active_count() > before:  # FFmpeg's own time-out frees the thread
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_stopping_while_connecting_does_not_wait() -> None:
    stopping = threading.Event()
    with SilentServer() as server:
        source = Source(
            f"rtsp://127.0.0.1:{server.port}/x",
            live=True,
            open_timeout=600,
            read_timeout=600,
            stopping=stopping.is_set,
        )
        timer = threading.Timer(0.2, stopping.set)
        timer.start()
        with pytest.raises(StreamerError) as caught, source:
            pass
        assert caught.value.code is ErrorCode.CANCELLED
        timer.join()


def test_one_that_hangs_holds_up_nobody_else(
    camera: GstCamera, eventually: Callable[..., None]
) -> None:
    # given eight sources that hang for as long as this test wants
    with Source(camera.url, live=True, read_timeout=60) as source, SilentServer() as server:
        hanging = [
            threading.Thread(
                target=failure, args=(f"rtsp://127.0.0.1:{server.port}/{n}", 600.0), daemon=True
            )
            for n in range(8)
        ]
        for thread in hanging:
            thread.start()
        eventually(lambda: server.accepted == 8)
        # then another one is read
        frames = iter(source)
        for _ in range(50):
            next(frames)
        assert all(thread.is_alive() for thread in hanging)
    for thread in hanging:
        thread.join(60)
        assert not thread.is_alive()


def test_a_frozen_camera_is_noticed(camera: GstCamera) -> None:
    try:
        with Source(camera.url, live=True, read_timeout=2.0) as source:
            frames, error = until_it_ends(source, 10, camera.freeze)
        assert error.code is ErrorCode.STREAM_TIMEOUT
        assert "sent nothing for 2 s" in error.message
        assert len(frames) >= 10
    finally:
        camera.thaw()


def test_a_killed_camera_is_a_lost_connection(units: Path) -> None:
    with GstCamera(units) as camera:
        with Source(camera.url, live=True, read_timeout=5) as source:
            _, error = until_it_ends(source, 10, camera.kill)
        assert error.code is ErrorCode.STREAM_CONNECTION_FAILED
        # when it is back on the same port
        camera.start()
        assert inspect_source(camera.url).codec == "h264"


def test_late_pictures_of_a_camera_are_dropped_up_to_a_key_frame(
    camera: GstCamera, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.media.packet_reader.MAX_PACKETS", 6)
    numbers = []
    with Source(camera.url, live=True, read_timeout=5) as source:
        for frame in source:
            numbers.append(number_of(frame.image.to_ndarray(format="rgb24")))
            if len(numbers) == 5:
                time.sleep(1.0)  # a machine that is late
            if len(numbers) == 30:
                break
        assert source.dropped > 5
    jumps = [(a, b) for a, b in pairwise(numbers) if b != (a + 1) % 50]
    # then it continues with a key frame (every 12th), so every frame is complete
    assert jumps
    assert all(b % 12 == 0 or b == 0 for _, b in jumps)
