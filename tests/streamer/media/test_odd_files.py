"""Recordings that are something else, too large, or of more than 8 bits."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from nvila_core.errors import MediaWarning
from nvila_core.media.video_file import to_image
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.jpeg import to_bgr
from streamer.media.access_policy import AccessPolicy
from streamer.media.source import Source
from tests.support.web import HERE, Site

HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(2000)


def write(file: Path, pix_fmt: str, frame: av.VideoFrame, codec: str = "ffv1") -> str:
    """Write a video of two frames, lossless by default."""
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, pix_fmt
        for number in range(2):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return str(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"%PDF-1.7", "a PDF document"),
        (b"", "is empty"),
    ],
)
def test_a_recording_that_is_something_else_is_called_so(
    tmp_path: Path, content: bytes, says: str
) -> None:
    file = tmp_path / "clip.mp4"
    file.write_bytes(content)
    with pytest.raises(StreamerError, match=says) as caught, Source(str(file), live=False):
        pass
    assert caught.value.code is ErrorCode.STREAM_NO_VIDEO


@pytest.mark.parametrize(
    ("codec", "has"),
    [("libx264", "640 x 480 pixels, more than the"), ("ffv1", "more than the 0.30")],
)
def test_frames_that_are_too_large_are_refused(tmp_path: Path, codec: str, has: str) -> None:
    url = write(tmp_path / "a.mkv", "yuv420p", av.VideoFrame(640, 480, "yuv420p"), codec)
    access = AccessPolicy(max_pixels=640 * 480, max_live_pixels=1)
    with Source(url, live=False, access=access) as source:
        assert len(list(source)) == 2
    access = AccessPolicy(max_pixels=640 * 480 - 1)
    with (
        pytest.raises(StreamerError, match=f"{has}.* setting max_pixels"),
        Source(url, live=False, access=access),
    ):
        pass
    access = AccessPolicy(max_live_pixels=640 * 480 - 1)
    with (
        pytest.raises(StreamerError, match=f"{has}.* setting max_live_pixels"),
        Source(url, live=True, access=access),
    ):
        pass


def test_thermal_frames_are_scaled_by_their_range(tmp_path: Path) -> None:
    ramp = np.repeat(np.linspace(29_300, 31_000, 64)[None], 16, axis=0).astype(np.uint16)
    url = write(tmp_path / "t.mkv", "gray16le", av.VideoFrame.from_ndarray(ramp, "gray16le"))
    with Source(url, live=False) as source:
        pixels = [to_bgr(frame.image) for frame in source]
    assert len(pixels) == 2
    for bgr in pixels:
        assert bgr.shape == (16, 64, 3)
        assert bgr.min() == 0
        assert bgr.max() == 255


def ramp_of(low: float, high: float, dtype: str) -> np.ndarray[Any, Any]:
    """Return colours [16, 64, 3]: red from `low` to `high`, no green, half as much blue."""
    red = np.repeat(np.linspace(low, high, 64)[None], 16, axis=0)
    return np.stack([red, np.full_like(red, low), (red + low) / 2], axis=-1).astype(dtype)


DEEP = {
    "rgb48le": "uint16",
    "rgb48be": "uint16",
    "bgr48le": "uint16",
    "rgba64le": "uint16",
    "bgra64le": "uint16",
    "gbrp16le": "uint16",
    "gbrap16le": "uint16",
    "gbrpf32le": "float32",
    "gbrapf32le": "float32",
    "gbrpf16le": "float32",
}


def deep_frame(pixels: np.ndarray[Any, Any], pix_fmt: str) -> av.VideoFrame:
    """Return a frame of `pix_fmt` that holds RGB `pixels`."""
    if pix_fmt == "gbrpf16le":  # FFmpeg reads it only
        frame = av.VideoFrame(pixels.shape[1], pixels.shape[0], pix_fmt)
        for plane, channel in zip(frame.planes, (1, 2, 0), strict=True):
            row = plane.line_size // 2
            rows = np.zeros((pixels.shape[0], row), np.float16)
            rows[:, : pixels.shape[1]] = pixels[..., channel]
            plane.update(rows.tobytes())
        return frame
    wide = "gbrpf32le" if pixels.dtype == np.float32 else "rgb48le"
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), wide).reformat(format=pix_fmt)


@pytest.mark.parametrize("pix_fmt", DEEP)
def test_deep_colours_that_fill_little_of_their_range_are_scaled(pix_fmt: str) -> None:
    # given a sensor of 12 bits in 16, or floats of a few percent
    top = 4000.0 if DEEP[pix_fmt] == "uint16" else 0.06
    frame = deep_frame(ramp_of(0, top, DEEP[pix_fmt]), pix_fmt)
    noted: list[bool] = []

    bgr = to_bgr(frame, lambda: noted.append(True))
    with pytest.warns(MediaWarning, match="more than 8 bits"):
        image = np.asarray(to_image(frame))

    assert noted == [True]
    for blue, green, red in (bgr[8].astype(int).T, image[8].astype(int).T[::-1]):
        assert (red[0], red[-1]) == (0, 255)
        assert np.all(np.diff(red) >= 0)
        assert green.max() <= 1
        assert abs(int(blue[-1]) - 128) <= 2


@pytest.mark.parametrize("pix_fmt", DEEP)
def test_deep_colours_that_fill_their_range_keep_their_brightness(pix_fmt: str) -> None:
    top = 40_000.0 if DEEP[pix_fmt] == "uint16" else 0.61
    frame = deep_frame(ramp_of(0, top, DEEP[pix_fmt]), pix_fmt)
    noted: list[bool] = []

    bgr = to_bgr(frame, lambda: noted.append(True))

    assert noted == []
    assert abs(int(bgr[8, -1, 2]) - 156) <= 1


def test_a_dark_scene_of_ten_bits_stays_dark() -> None:
    dark = np.full((24, 32, 3), 20, np.uint8)
    frame = av.VideoFrame.from_ndarray(dark, "rgb24").reformat(format="yuv420p10le")
    noted: list[bool] = []

    assert to_bgr(frame, lambda: noted.append(True)).max() < 40
    assert noted == []


@pytest.mark.parametrize("name", ["a.heic", "a.mp4"])
def test_a_heic_photo_is_not_read_as_a_video_of_its_tiles(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(HEIC)
    with (
        pytest.raises(StreamerError, match="is a HEIC picture: give a video") as caught,
        Source(str(file), live=False),
    ):
        pass
    assert caught.value.code is ErrorCode.STREAM_NO_VIDEO


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html><body>Login</body></html>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"%PDF-1.7\n" + bytes(2000), "a PDF document"),
        (b"PK\x03\x04" + bytes(2000), "a ZIP archive"),
        (b'{"error": "not logged in"}', "JSON text"),
        (HEIC, "a HEIC picture: give a video"),
    ],
)
@pytest.mark.parametrize("live", [False, True])
def test_what_a_server_sends_instead_of_a_video_is_called_so(
    tmp_path: Path, content: bytes, says: str, live: bool
) -> None:
    (tmp_path / "clip.mp4").write_bytes(content)
    with (
        Site(tmp_path) as site,
        pytest.raises(StreamerError, match=says) as caught,
        Source(f"{site.url}/clip.mp4", live=live, access=HERE, read_timeout=5),
    ):
        pass
    assert caught.value.code is ErrorCode.STREAM_NO_VIDEO
