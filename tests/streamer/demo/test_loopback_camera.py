import os
import socket
import threading
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.errors import ErrorCode, StreamerError
from streamer.media.source import Source, inspect_source
from tests.support.videos import number_of, write_video


def test_it_serves_a_file_in_a_loop_at_its_own_pace(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_video(tmp_path / "street 1.mp4", seconds=1)
    with (
        LoopbackCamera(tmp_path / "street 1.mp4") as camera,
        Source(camera.url, live=True, read_timeout=5) as source,
    ):
        frames = []
        for frame in source:
            frames.append((number_of(frame.image.to_ndarray(format="rgb24")), frame))
            if len(frames) == 45:
                break
    assert [number for number, _ in frames] == [n % 25 for n in range(45)]
    # then stream time goes on through the loops (the server's first packet has no timestamp)
    assert all(0 <= b.pts - a.pts < 0.1 for (_, a), (_, b) in pairwise(frames))
    assert frames[-1][1].pts == pytest.approx(44 / 25, abs=0.1)
    # and in real time, on the wall clock
    later = [frame for _, frame in frames[25:]]
    assert later[-1].time - later[0].time == pytest.approx(19 / 25, abs=0.2)
    # and the server's own chatter is not to be seen
    assert capfd.readouterr() == ("", "")


def test_a_busy_machine_sends_every_picture_once(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=1)
    numbers: list[int] = []
    with (
        LoopbackCamera(tmp_path / "v.mp4") as camera,
        Source(camera.url, live=True, open_timeout=60.0, read_timeout=60.0) as source,
    ):
        assert camera._loop is not None
        for frame in source:
            numbers.append(number_of(frame.image.to_ndarray(format="rgb24")))
            if len(numbers) == 75:
                break
            # when the server is held up for longer than its packets wait for room
            camera._loop.call_soon_threadsafe(time.sleep, 0.06)
    assert numbers == [n % 25 for n in range(75)]


def test_several_may_watch(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mkv", seconds=1, codec="libx265")
    with LoopbackCamera(tmp_path / "v.mkv") as camera:
        with Source(camera.url, live=True) as first, Source(camera.url, live=True) as second:
            assert next(iter(first)).image.width == next(iter(second)).image.width == 320
        assert inspect_source(camera.url).codec == "hevc"


def test_more_may_watch_than_the_machine_has_processors(tmp_path: Path) -> None:
    write_video(tmp_path / "small.mp4", seconds=2, width=64, height=48)
    # asyncio's own threads are four more than processors, and at most 32
    count = min(32, (os.cpu_count() or 1) + 4) + 1

    with LoopbackCamera(tmp_path / "small.mp4") as camera, ExitStack() as stack:
        sources = [
            stack.enter_context(Source(camera.url, live=True, open_timeout=60.0, read_timeout=60.0))
            for _ in range(count)
        ]
        seen = [next(iter(source)) for source in sources]  # none hangs up before all have one

    assert len(seen) == count


def test_stopping_hangs_up_and_leaves_nothing(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=1)
    before = threading.active_count()
    camera = LoopbackCamera(tmp_path / "v.mp4")
    camera.start()
    camera.start()
    port = int(camera.url.split(":")[2].split("/")[0])
    with Source(camera.url, live=True, read_timeout=5) as source:
        frames = iter(source)
        next(frames)
        camera.stop()
        with pytest.raises(StreamerError) as caught:
            for _ in frames:
                pass
        assert caught.value.code is ErrorCode.STREAM_CONNECTION_FAILED
    camera.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), 1)
    assert threading.active_count() == before


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StreamerError) as caught:
        LoopbackCamera(tmp_path / "none.mp4").start()
    assert caught.value.code is ErrorCode.STREAM_NOT_FOUND
    (tmp_path / "v.avi").touch()
    with pytest.raises(StreamerError) as caught:
        LoopbackCamera(tmp_path / "v.avi").start()
    assert caught.value.code is ErrorCode.STREAM_CODEC_UNSUPPORTED


def test_another_file_is_not_found(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=1)
    with LoopbackCamera(tmp_path / "v.mp4") as camera:
        with pytest.raises(StreamerError) as caught:
            inspect_source(camera.url.replace("v.mp4", "w.mp4"))
        assert caught.value.code is ErrorCode.STREAM_NOT_FOUND
