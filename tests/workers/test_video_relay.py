"""The video of watched streams: from real RTSP cameras through Redis, decoded frame for frame."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import av
import pytest

from streamer.clock import SystemClock
from streamer.demo.loopback_camera import LoopbackCamera
from streamer.media.packet_reader import Arrival
from streamer.sources.live_video import MAX_WATCHED, LiveVideo, VideoPiece
from tests.support.cameras import GstCamera
from tests.support.ingest_bench import Bench
from tests.support.videos import decoded_numbers, write_video
from workers import video_relay
from workers.video_relay import VideoTap


@pytest.fixture
def video(bench: Bench) -> LiveVideo:
    """The wishes and pieces of the installation."""
    return LiveVideo(bench.context.connections.frames, bench.context.clock)


class Viewer:
    """A viewer of one stream; `look` as often as it may."""

    def __init__(self, video: LiveVideo, stream_id: str) -> None:
        self._video = video
        self._stream_id = stream_id
        self._place = "0-0"
        self.pieces: list[VideoPiece] = []

    def look(self) -> list[VideoPiece]:
        """Say that the stream is watched, and return all pieces that have come so far."""
        self._video.want([self._stream_id])
        new = self._video.read({self._stream_id: self._place}, 0.01).get(self._stream_id, [])
        if new:
            self._place = new[-1][0]
            self.pieces += [piece for _, piece in new]
        return self.pieces


def numbers(pieces: Sequence[VideoPiece]) -> list[int]:
    """Decode pieces of one run as a browser does; return the numbers that their pictures show."""
    assert len({piece.run for piece in pieces}) == 1
    return decoded_numbers(pieces[0].init + b"".join(piece.data for piece in pieces))


def test_a_camera_is_relayed_while_it_is_watched(
    bench: Bench, loopback: LoopbackCamera, video: LiveVideo, eventually: Callable[..., None]
) -> None:
    spec = bench.attach(loopback.url, live=True, fps=1)
    with bench.run(spec):
        eventually(lambda: bench.frames.count(spec.id) >= 2)
        # given that nobody has watched
        assert video.kept(spec.id) == []
        assert bench.context.video.numbers() == {"video_streams": 0, "video_bytes": 0}
        # when two watch, they share what is made once
        first, second = Viewer(video, spec.id), Viewer(video, spec.id)
        eventually(lambda: sum(piece.key for piece in first.look()) >= 4)
        eventually(lambda: len(second.look()) >= 5)
        eventually(lambda: set(second.pieces) <= set(first.look()))
        # then every frame comes, as the camera sent it: its film of 50 frames is repeated
        shown = numbers(first.pieces)
        assert len(shown) >= 2 * 12
        assert shown == [(shown[0] + n) % 50 for n in range(len(shown))]
        assert [piece.number for piece in first.pieces] == list(range(len(first.pieces)))
        # and no more is kept than a new viewer needs
        assert 1 <= sum(piece.key for _, piece in video.kept(spec.id)) <= 3
        assert bench.context.video.numbers()["video_streams"] == 1
        # when nobody watches any more
        eventually(lambda: not video.kept(spec.id))
        assert bench.context.video.numbers()["video_streams"] == 0
    assert bench.status(spec).counters.reconnects == 0


def test_a_camera_that_is_back_begins_another_run(
    bench: Bench, units: Path, video: LiveVideo, eventually: Callable[..., None]
) -> None:
    bench = bench.with_settings(reconnect_cap=0.2)
    with GstCamera(units) as camera:
        spec = bench.attach(camera.url, live=True, fps=1)
        viewer = Viewer(video, spec.id)
        with bench.run(spec):
            eventually(lambda: len(viewer.look()) >= 3)
            camera.kill()
            camera.start()
            eventually(lambda: len({piece.run for piece in viewer.look()}) == 2)
            before, after = sorted({piece.run for piece in viewer.pieces})
            runs = [piece.run for piece in viewer.pieces]
            assert runs == sorted(runs)
            for run in (before, after):
                part = [piece for piece in viewer.pieces if piece.run == run]
                assert part[0].key
                shown = numbers(part)
                assert shown == [(shown[0] + n) % 50 for n in range(len(shown))]


def test_more_streams_than_the_limit_are_refused(video: LiveVideo) -> None:
    watched = [f"str_{number}" for number in range(MAX_WATCHED)]
    assert video.want(watched) == set()
    assert video.want([*watched[:2], "str_new"]) == {"str_new"}
    assert video.wanted() == set(watched)


def test_what_redis_does_not_take_is_given_up_to_a_key_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a tap that nobody empties
    write_video(tmp_path / "v.ts", seconds=4, gop=25)
    with av.open(str(tmp_path / "v.ts"), "r") as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        emptied, tap = (VideoTap(lambda: True, 10**7, SystemClock()) for _ in range(2))
        size = 0
        for packet in packets:
            emptied(Arrival(packet, 0.0, 0.0))
            size += sum(len(piece.data) for piece in emptied.take())
        most = int(0.6 * size)  # which is reached in the third of four groups of pictures
        monkeypatch.setattr(video_relay, "MAX_VIDEO_BYTES", most)
        for packet in packets:
            tap(Arrival(packet, 0.0, 0.0))
    # then it holds the newest frames only, from a key frame on, and the gap is seen
    pieces = tap.take()
    assert sum(len(piece.data) for piece in pieces) <= most
    assert pieces[0].key
    assert pieces[0].number > 0
    shown = numbers(pieces)
    assert shown[0] % 25 == 0
    assert shown == list(range(shown[0], 99))  # the muxer holds the last frame
    assert tap.take() == []


def test_a_tap_that_nobody_watches_makes_nothing_and_other_codecs_stop_it(tmp_path: Path) -> None:
    write_video(tmp_path / "v.ts", seconds=0.4)
    write_video(tmp_path / "v.avi", codec="mjpeg", pix_fmt="yuvj420p", seconds=0.4)
    for name, watched in (("v.ts", False), ("v.avi", True)):
        tap = VideoTap(partial(bool, watched), 10**7, SystemClock())
        with av.open(str(tmp_path / name), "r") as container:
            for packet in container.demux(video=0):
                if packet.size:
                    tap(Arrival(packet, 0.0, 0.0))
        assert tap.take() == []
