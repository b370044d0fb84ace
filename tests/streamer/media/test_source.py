import os
import threading
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.frames.jpeg import to_bgr
from streamer.media.sampler import ChangeSampler, FpsSampler
from streamer.media.source import DecodedFrame, Source, inspect_source
from tests.support.videos import number_of, numbered_picture, write_audio, write_video


def decode(path: Path, **arguments: object) -> tuple[list[DecodedFrame], Source]:
    with Source(str(path), live=False, **arguments) as source:  # type: ignore[arg-type]
        return list(source), source


def numbers(frames: list[DecodedFrame]) -> list[int]:
    return [number_of(frame.image.to_ndarray(format="rgb24")) for frame in frames]


def refused(path: Path | str) -> StreamerError:
    with pytest.raises(StreamerError) as caught:
        inspect_source(str(path), timeout=5)
    return caught.value


def test_a_recording_that_was_cut_off_before_its_index_says_so(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    write_video(path, seconds=2)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    error = refused(path)
    assert error.code is ErrorCode.STREAM_NO_VIDEO
    assert "without its index" in error.message


@pytest.mark.parametrize("b_frames", [0, 3])
def test_every_frame_comes_in_presentation_order(tmp_path: Path, b_frames: int) -> None:
    times = write_video(tmp_path / "v.mp4", seconds=2, b_frames=b_frames)
    frames, source = decode(tmp_path / "v.mp4")
    assert numbers(frames) == list(range(50))
    assert [frame.pts for frame in frames] == pytest.approx(times)
    assert (source.decoded, source.packets, source.dropped) == (50, 50, 0)
    assert source.bytes > 1000


def test_the_info_says_what_it_is(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=2, fps=10, width=322, height=182)
    info = inspect_source(str(tmp_path / "v.mp4"))
    assert (info.codec, info.width, info.height, info.fps) == ("h264", 322, 182, 10)
    assert info.duration == pytest.approx(2.0)
    assert "mp4" in info.format


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix", "size"),
    [
        ("libx264", "yuv420p", "mp4", (160, 120)),
        ("libx264", "yuv444p", "mp4", (161, 121)),
        ("libx264", "yuv422p", "mkv", (162, 121)),
        ("libx264", "yuv420p10le", "mp4", (160, 120)),
        ("libx264", "yuv444p10le", "mkv", (161, 121)),
        ("libx264", "gray", "mp4", (160, 120)),
        ("libx264", "yuv420p", "flv", (160, 120)),
        ("libx264", "yuv420p", "h264", (160, 120)),
        ("libx265", "yuv420p", "mp4", (160, 120)),
        ("libx265", "yuv420p10le", "ts", (160, 120)),
        ("libx265", "yuv444p", "mkv", (160, 120)),
        ("libsvtav1", "yuv420p", "mp4", (160, 120)),
        ("libsvtav1", "yuv420p10le", "mkv", (160, 120)),
        ("libvpx", "yuv420p", "webm", (161, 121)),
        ("libvpx-vp9", "yuv420p", "webm", (161, 121)),
        ("libvpx-vp9", "yuv444p", "webm", (160, 120)),
        ("mjpeg", "yuvj420p", "avi", (161, 121)),
        ("mjpeg", "yuvj444p", "mov", (161, 121)),
        ("mjpeg", "yuvj422p", "mjpeg", (160, 120)),
        ("prores_ks", "yuv422p10le", "mov", (160, 120)),
    ],
)
def test_codecs_formats_and_sizes(
    tmp_path: Path, codec: str, pix_fmt: str, suffix: str, size: tuple[int, int]
) -> None:
    path = tmp_path / f"v.{suffix}"
    width, height = size
    write_video(
        path,
        times=[n / 10 for n in range(10)],
        fps=10,
        codec=codec,
        pix_fmt=pix_fmt,
        width=width,
        height=height,
    )
    frames, source = decode(path)
    known = {"libx264": "h264", "libx265": "hevc", "libsvtav1": "av1", "libvpx": "vp8"}
    assert source.info.codec == (known | {"libvpx-vp9": "vp9", "prores_ks": "prores"}).get(
        codec, codec
    )
    shown = [to_bgr(frame.image) for frame in frames]
    assert [number_of(picture) for picture in shown] == list(range(10))
    assert {picture.shape for picture in shown} == {(height, width, 3)}
    if suffix not in {"h264", "mjpeg"}:  # bare frames have no times
        times = [n / 10 for n in range(10)]
        assert [frame.pts for frame in frames] == pytest.approx(times, abs=0.002)
    # then a change is detected in every pixel format
    sampler = ChangeSampler(0.1, 0.01, 60)
    assert sampler.keep(0.0, frames[0].image)
    assert sampler.keep(1.0, frames[9].image)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_size_or_a_codec_that_changes_in_mid_stream(
    tmp_path: Path, codec: str, sparse: bool
) -> None:
    # given a broadcast that continues in another size, and perhaps another codec
    write_video(tmp_path / "a.ts", seconds=2, width=160, height=120)
    later = [2 + n / 25 for n in range(75)]
    write_video(tmp_path / "b.ts", times=later, width=240, height=136, codec=codec)
    parts = [(tmp_path / name).read_bytes() for name in ("a.ts", "b.ts")]
    (tmp_path / "v.ts").write_bytes(b"".join(parts))
    sampler = FpsSampler(5)
    arguments = {"sampler": lambda: sampler} if sparse else {}
    frames, source = decode(tmp_path / "v.ts", **arguments)
    kept = [frame for frame in frames if not sparse or sampler.keep(frame.pts)]
    # then at most half a second is lost, where a new codec begins
    assert {(f.image.width, f.image.height) for f in kept} == {(160, 120), (240, 136)}
    assert len(kept) >= (22 if sparse else 110)
    assert np.diff([frame.pts for frame in kept]).max() < 0.75
    assert kept[-1].pts == pytest.approx(5.0, abs=0.21)
    assert source.corrupt <= 2
    assert (source.info.codec, source.codec) == ("h264", {"libx265": "hevc"}.get(codec, "h264"))


def test_a_variable_frame_rate_is_followed_exactly(tmp_path: Path) -> None:
    times = [0, 0.04, 0.5, 1.7, 1.74, 3.0, 10.0]
    write_video(tmp_path / "v.mkv", times=times, b_frames=2)
    frames, _ = decode(tmp_path / "v.mkv")
    assert [frame.pts for frame in frames] == pytest.approx(times, abs=0.001)
    assert numbers(frames) == list(range(7))


@pytest.mark.parametrize(
    ("name", "first"), [("v.ts", 5.0), ("v.mp4", 5.0), ("v.mkv", -0.4), ("b.ts", 900.0)]
)
def test_a_recording_starts_at_nought(tmp_path: Path, name: str, first: float) -> None:
    path = tmp_path / name
    write_video(path, times=[first + n / 25 for n in range(30)])
    frames, _ = decode(path, origin=1000.0)
    assert [frame.pts for frame in frames] == pytest.approx([n / 25 for n in range(30)], abs=0.001)
    assert frames[-1].time == pytest.approx(1000 + frames[-1].pts)


def test_timestamps_that_step_back_continue_right_after_the_last_frame(tmp_path: Path) -> None:
    parts = []
    for first in (50.0, 3.0):
        write_video(tmp_path / "part.ts", times=[first + n / 25 for n in range(25)])
        parts.append((tmp_path / "part.ts").read_bytes())
    (tmp_path / "v.ts").write_bytes(b"".join(parts))
    frames, _ = decode(tmp_path / "v.ts")
    assert len(frames) == 50
    steps = np.diff([frame.pts for frame in frames])
    assert steps.min() > 0
    assert steps.max() < 0.2


def test_reading_may_start_in_the_middle(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=8, gop=25)
    frames, _ = decode(tmp_path / "v.mp4", start=5.5)
    assert frames[0].pts == pytest.approx(5.0)
    assert numbers(frames) == list(range(125, 200))


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_rotation_is_applied(tmp_path: Path, degrees: int) -> None:
    upright = numbered_picture(345, 320, 240)
    stored = np.ascontiguousarray(np.rot90(upright, -degrees // 90))
    height, width = stored.shape[:2]
    write_video(
        tmp_path / "v.mp4",
        times=[0.0, 0.1],
        width=width,
        height=height,
        rotation=degrees,
        pictures=[stored, stored],
    )
    frames, _ = decode(tmp_path / "v.mp4")
    shown = to_bgr(frames[0].image)
    assert shown.shape == (240, 320, 3)
    assert number_of(shown) == 345


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    error = refused(tmp_path / "none.mp4")
    assert error.code is ErrorCode.STREAM_NOT_FOUND
    assert "none.mp4" in error.message
    assert "check the path" in error.message


def test_what_is_no_video_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    (tmp_path / "notes.txt").write_text("not a video\n" * 50)
    (tmp_path / "noise.mkv").write_bytes(np.random.default_rng(1).bytes(5000))
    write_audio(tmp_path / "sound.m4a")
    for name in ("empty.mp4", "text.mp4", "notes.txt", "noise.mkv", "sound.m4a", "."):
        error = refused(tmp_path / name)
        assert error.code is ErrorCode.STREAM_NO_VIDEO, name
        assert "give" in error.message


def test_a_file_without_its_index_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4")
    data = (tmp_path / "v.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    assert refused(tmp_path / "cut.mp4").code is ErrorCode.STREAM_NO_VIDEO


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4")
    (tmp_path / "v.mp4").chmod(0)
    assert "permission" in refused(tmp_path / "v.mp4").message


def test_a_name_with_a_colon_is_a_name(tmp_path: Path) -> None:
    write_video(tmp_path / "12:30 gate.mp4", seconds=0.2)
    assert len(decode(tmp_path / "12:30 gate.mp4")[0]) == 5


def test_a_playlist_cannot_reach_the_network(tmp_path: Path) -> None:
    (tmp_path / "list.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nhttp://127.0.0.1:1/x.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(StreamerError):
        inspect_source(str(tmp_path / "list.m3u8"))


def test_a_scheme_that_is_not_allowed_is_not_opened(tmp_path: Path) -> None:
    error = refused("ftp://me:hunter2@127.0.0.1/x")
    assert error.code is ErrorCode.STREAM_URL_FORBIDDEN
    assert "hunter2" not in error.message


def test_a_damaged_file_gives_what_can_be_read(tmp_path: Path) -> None:
    write_video(tmp_path / "v.ts", seconds=4)
    data = bytearray((tmp_path / "v.ts").read_bytes())
    broken = np.random.default_rng(2).integers(len(data) // 3, len(data) // 2, 400)
    for position in broken:
        data[position] ^= 0xFF
    (tmp_path / "v.ts").write_bytes(data)
    frames, source = decode(tmp_path / "v.ts")
    assert 40 < len(frames) <= 101
    assert source.packets >= 90


def test_a_file_of_which_nothing_decodes_is_an_error(tmp_path: Path) -> None:
    write_video(tmp_path / "v.avi", seconds=1, codec="mjpeg", pix_fmt="yuvj420p")
    with av.open(str(tmp_path / "v.avi")) as good, av.open(str(tmp_path / "b.avi"), "w") as bad:
        stream = bad.add_stream_from_template(good.streams.video[0])
        for packet in good.demux(video=0):
            if packet.size:
                broken = av.Packet(bytes(100))
                broken.pts, broken.dts, broken.time_base = packet.pts, packet.dts, packet.time_base
                broken.stream = stream
                bad.mux(broken)
    with pytest.raises(StreamerError) as caught:
        decode(tmp_path / "b.avi")
    assert caught.value.code is ErrorCode.STREAM_CODEC_UNSUPPORTED
    assert "mjpeg" in caught.value.message


def test_stopping_ends_the_iteration(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=4)
    seen = 0
    with Source(str(tmp_path / "v.mp4"), live=False, stopping=lambda: seen >= 10) as source:
        for _ in source:
            seen += 1
    assert 10 <= seen < 40


def test_no_thread_and_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=4)
    process = psutil.Process()
    before = (threading.active_count(), process.num_fds())
    for _ in range(25):
        with Source(str(tmp_path / "v.mp4"), live=False) as source:
            next(iter(source))
        refused(tmp_path / "none.mp4")
        refused("rtsp://127.0.0.1:1/x")
    assert (threading.active_count(), process.num_fds()) == before


def test_a_slow_reader_of_a_recording_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.media.packet_reader.MAX_PACKETS", 8)
    write_video(tmp_path / "v.mp4", seconds=4)
    frames, source = decode(tmp_path / "v.mp4")
    assert numbers(frames) == list(range(100))
    assert source.dropped == 0


def test_a_few_large_packets_are_as_good_as_many_small_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.media.packet_reader.MAX_PACKET_BYTES", 5_000)
    write_video(tmp_path / "v.mp4", seconds=4)
    frames, source = decode(tmp_path / "v.mp4")
    assert numbers(frames) == list(range(100))
    assert source.dropped == 0
