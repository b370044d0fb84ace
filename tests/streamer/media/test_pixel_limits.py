"""Pictures larger than a setting allows are never decoded, whenever they come."""

import json
import subprocess
import sys
import zlib
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.frames.jpeg import MAX_STORED_SIDE, from_jpeg, to_jpeg
from streamer.media.access_policy import AccessPolicy
from streamer.media.source import Source
from streamer.settings import load_settings

SIDE = 9000
PICTURES = ("a.png", "a.jpg", "a.mjpeg")  # files that begin as pictures are called so
MAX_PIXELS = 2_000_000
MAX_GROWN = 96 << 20
"""Bytes; a frame of SIDE x SIDE takes 243 MB, one of MAX_PIXELS 12 MB at most."""

PROGRAM = """
import json, resource, sys
from streamer.errors import StreamerError
from streamer.frames.jpeg import to_bgr, to_jpeg
from streamer.media.access_policy import AccessPolicy
from streamer.media.source import Source
from streamer.settings import Settings

assert "torch" not in sys.modules
access = AccessPolicy.of(Settings())
small, *urls = sys.argv[1:]
for _ in range(2):  # what is loaded once does not count
    with Source(small, live=False, access=access) as source:
        for frame in source:
            to_jpeg(to_bgr(frame.image), 90)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
seen = {}
for url in urls:
    frames, error = 0, None
    for live in (False, True):
        try:
            with Source(url, live=live, access=access, read_timeout=1.0) as source:
                for frame in source:
                    to_jpeg(to_bgr(frame.image), 90)
                    frames = max(frames, frame.image.width)
        except StreamerError as failed:
            error = error or failed.code
    seen[url] = [frames, error]
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10
print(json.dumps({"seen": seen, "grown": grown, "torch": "torch" in sys.modules}))
"""


def png(width: int, height: int) -> bytes:
    """Return a black PNG, which is small however many pixels it has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = zlib.crc32(kind + data)
        return len(data).to_bytes(4, "big") + kind + data + check.to_bytes(4, "big")

    packed = zlib.compressobj(1)
    rows = b"".join(packed.compress(bytes(1 + 3 * width)) for _ in range(height))
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    body = chunk(b"IHDR", header) + chunk(b"IDAT", rows + packed.flush()) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg(width: int, height: int) -> bytes:
    data: bytes = cv2.imencode(".jpg", np.zeros((height, width), np.uint8))[1].tobytes()
    return data


def video_of(picture: bytes, codec: str, kind: str) -> bytes:
    """Return a video of three times the same picture, whose header says 64 x 48."""
    file = BytesIO()
    with av.open(file, "w", format=kind) as container:
        stream: Any = container.add_stream(codec, rate=1)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "rgb24"
        for number in range(3):
            packet = av.Packet(picture)
            packet.stream, packet.pts, packet.dts = stream, number, number
            packet.time_base, packet.is_keyframe = stream.time_base or Fraction(1), True
            container.mux(packet)
    return file.getvalue()


def video(path: Path, width: int, height: int, codec: str = "libx264") -> bytes:
    """Write ten frames as MPEG-TS and return them."""
    with av.open(str(path), "w", format="mpegts") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(10):
            frame = av.VideoFrame(width, height, "yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


def test_memory_is_bounded_whatever_is_attached(tmp_path: Path) -> None:
    # given pictures of 81 million pixels in few bytes, at once and after small ones
    large, little = jpeg(SIDE, SIDE), jpeg(64, 48)
    files = {
        "a.png": png(SIDE, SIDE),
        "a.jpg": large,
        "a.mjpeg": large * 3,
        "then.mjpeg": little * 30 + large * 3 + little * 30,
        "lies.avi": video_of(large, "mjpeg", "avi"),
        "lies.mov": video_of(png(SIDE, SIDE), "png", "mov"),
    }
    for name, data in files.items():
        assert len(data) < 5 << 20
        (tmp_path / name).write_bytes(data)
    video(tmp_path / "small.ts", 64, 48)
    urls = [str(tmp_path / name) for name in files]
    # when a process that may decode two million pixels reads them
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "small.ts"), *urls],
        env={
            "STREAMER_MAX_PIXELS": str(MAX_PIXELS),
            "STREAMER_MAX_LIVE_PIXELS": str(MAX_PIXELS),
            "PYTHONPATH": ":".join(sys.path),
        },
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    # then it never held one of them
    assert report["torch"] is False
    assert report["grown"] < MAX_GROWN
    for name in files.keys() - {"then.mjpeg"}:
        width, error = report["seen"][str(tmp_path / name)]
        assert width == 0
        assert error == ("STREAM_NO_VIDEO" if name in PICTURES else "STREAM_CODEC_UNSUPPORTED")
    assert report["seen"][str(tmp_path / "then.mjpeg")][0] == 64


@pytest.mark.parametrize("live", [False, True])
def test_a_stream_that_grows_beyond_the_limit_loses_those_frames_only(
    tmp_path: Path, live: bool
) -> None:
    parts = [
        video(tmp_path / "small.ts", 320, 240),
        video(tmp_path / "large.ts", 1280, 720),
        video(tmp_path / "again.ts", 320, 240),
    ]
    url = tmp_path / "joined.ts"
    url.write_bytes(b"".join(parts))
    access = AccessPolicy(max_pixels=640 * 480, max_live_pixels=640 * 480)
    assert sizes(str(url), live, access) == {(320, 240)}
    assert sizes(str(url), live, AccessPolicy()) == {(320, 240), (1280, 720)}


@pytest.mark.parametrize("live", [False, True])
def test_the_decoder_after_a_change_of_codec_keeps_the_limit(tmp_path: Path, live: bool) -> None:
    parts = [
        video(tmp_path / "a.ts", 320, 240, "libx264"),
        video(tmp_path / "b.ts", 1280, 720, "mpeg2video"),
        video(tmp_path / "c.ts", 320, 240, "libx264"),
    ]
    url = tmp_path / "joined.ts"
    url.write_bytes(b"".join(parts))
    limit = AccessPolicy(max_pixels=640 * 480, max_live_pixels=640 * 480)

    assert sizes(str(url), live, AccessPolicy()) == {(320, 240), (1280, 720)}
    assert sizes(str(url), live, limit) == {(320, 240)}


def sizes(url: str, live: bool, access: AccessPolicy) -> set[tuple[int, int]]:
    """Return the sizes of the frames that are decoded until the end."""
    found = set()
    try:
        with Source(url, live=live, access=access) as source:
            for frame in source:
                found.add((frame.image.width, frame.image.height))
    except StreamerError as error:
        if not live:  # the end of a live source is a lost connection
            raise AssertionError(error.message) from None
    return found


def test_the_limits_are_settings() -> None:
    access = AccessPolicy.of(load_settings(max_pixels=5, max_live_pixels=4))

    assert (access.max_pixels, access.max_live_pixels) == (5, 4)
    with pytest.raises(StreamerError) as caught:
        load_settings(max_pixels=0)
    assert caught.value.code is ErrorCode.SETTINGS_INVALID


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [
        (MAX_STORED_SIDE, 2, True),
        (MAX_STORED_SIDE + 1, 2, False),
        (2, MAX_STORED_SIDE, True),
        (2, MAX_STORED_SIDE + 1, False),
    ],
)
def test_a_stored_picture_is_decoded_up_to_the_size_of_a_frame(
    width: int, height: int, fits: bool
) -> None:
    stored = to_jpeg(np.zeros((height, width, 3), np.uint8), 90)

    if fits:
        assert from_jpeg(stored, width, height).shape == (height, width, 3)
    else:
        with pytest.raises(ValueError, match="larger"):
            from_jpeg(stored, 64, 48)  # whatever its record says


def test_a_stored_picture_that_is_not_a_jpeg_is_not_decoded() -> None:
    for data in (png(3, 3), b"", b"no picture", jpeg(8, 8)[:3]):
        with pytest.raises(ValueError, match="JPEG"):
            from_jpeg(data, 3, 3)
