"""Reading of videos: encoded here, damaged, directories of images, and files without video."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from nvila_core import MediaError, Video


def write_video(path: Path, levels: list[int], codec: str = "libx264", **options: str) -> Path:
    """Write a video of 64x48 pixels, ten frames a second, in flat greys of the given levels."""
    return write_frames(
        path, [np.full((48, 64, 3), level, np.uint8) for level in levels], codec, **options
    )


def write_frames(path: Path, frames: list[Any], codec: str = "libx264", **options: str) -> Path:
    """Write a video of uint8 frames [48, 64, 3]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = 64, 48
        stream.pix_fmt, stream.bit_rate = "yuv420p", 4_000_000
        stream.time_base = Fraction(1, 10)
        lossless = {"crf": "0", "g": "12"} if codec == "libx264" else {}
        stream.options = {**lossless, **options}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return path


def levels_of(frames: list[Image.Image]) -> list[int]:
    return [round(np.asarray(frame).mean()) for frame in frames]


LEVELS = [10 + 6 * i for i in range(40)]


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.h264", "libx264")],
)
def test_the_sampled_frames_are_the_right_ones(tmp_path: Path, name: str, codec: str) -> None:
    # given a video with B-frames and a key frame every 12 (where the codec has them)
    video = Video.from_path(write_video(tmp_path / name, LEVELS, codec))
    # when frames are sampled
    found = levels_of(video.sample(8))
    # then they are those at round(linspace(0, 39, 8)), colour conversion apart
    expected = [LEVELS[i] for i in (0, 6, 11, 17, 22, 28, 33, 39)]
    assert len(video) == 40
    assert all(abs(a - b) <= 2 for a, b in zip(found, expected, strict=True)), (found, expected)


def test_fps_takes_the_beginning(tmp_path: Path) -> None:
    video = Video.from_path(write_video(tmp_path / "a.mp4", LEVELS))
    expected = [LEVELS[i] for i in (0, 5, 10)]
    assert all(
        abs(a - b) <= 2 for a, b in zip(levels_of(video.sample(3, fps=2.0)), expected, strict=True)
    )
    # a video that is too short for this number of frames gives fewer
    assert len(video.sample(100, fps=2.0)) == 8


def test_truncated_file_gives_what_can_be_read(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mkv", LEVELS, bf="0")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    frames = Video.from_path(path).sample(8)
    assert len(frames) == 8
    assert levels_of(frames)[0] == pytest.approx(LEVELS[0], abs=2)


def test_upright_by_rotation_metadata(tmp_path: Path) -> None:
    # given an image that is white on the left, in a file with a clockwise rotation of 90 degrees
    path = tmp_path / "turned.mp4"
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32] = 255
    plain = write_frames(tmp_path / "plain.mp4", [picture])
    with av.open(str(plain)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    set_rotation(path)
    assert Video.from_path(plain).sample(1)[0].size == (64, 48)
    (upright,) = Video.from_path(path).sample(1)
    # then it is turned upright, with white on top
    assert upright.size == (48, 64)
    red = np.asarray(upright)[:, 24, 0]
    assert red[5] > 200 > 50 > red[60]


def set_rotation(path: Path) -> None:
    """Write a 90 degree turn into the matrix of an MP4's track header."""
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4
    matrix = start + 4 + 5 * 4 + 4 * 4
    turn = [0, 0x10000, 0, 0xFFFF0000, 0, 0, 48 << 16, 0, 0x40000000]
    data[matrix : matrix + 36] = b"".join(v.to_bytes(4, "big") for v in turn)
    path.write_bytes(data)


def test_directory_of_images_in_order_of_names(tmp_path: Path) -> None:
    for i in range(5):
        Image.new("RGB", (8, 8), (i * 10,) * 3).save(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no picture")
    assert levels_of(Video.from_path(tmp_path).sample(3)) == [0, 20, 40]
    assert levels_of(Video.from_path(tmp_path).sample(7)) == [0, 10, 10, 20, 30, 30, 40]


def make_bad(path: Path, kind: str) -> Path:
    if kind == "text":
        path.write_text("not a video")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "empty directory":
        path.mkdir()
    elif kind == "audio only":
        with av.open(str(path), "w", format="wav") as container:
            stream: Any = container.add_stream("pcm_s16le", rate=8000)
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
            frame.sample_rate = 8000
            container.mux(stream.encode(frame))
    return path


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "empty directory", "audio only"])
def test_an_error_names_the_file_that_is_no_video(tmp_path: Path, kind: str) -> None:
    path = make_bad(tmp_path / "bad", kind)
    with pytest.raises(MediaError, match="bad"):
        Video.from_path(path).sample(8)


def test_frames_in_memory() -> None:
    with pytest.raises(MediaError, match="no frames"):
        Video([])
    with pytest.raises(MediaError, match="2 frames but 1 timestamps"):
        Video([1, 2], [0.0])
    greys = [np.full((4, 4, 3), level, np.uint8) for level in (0, 50, 100)]
    assert levels_of(Video(greys).sample(2)) == [0, 100]
    assert levels_of(Video(greys, sampled=True).sample(2)) == [0, 100]
    assert levels_of(Video(greys, sampled=True).sample(5)) == [0, 50, 100]
