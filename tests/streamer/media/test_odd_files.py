"""Recordings that are something else, too large, or of more than 8 bits."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamer.errors import ErrorCode, StreamerError
from streamer.frames.jpeg import to_bgr
from streamer.media.access_policy import AccessPolicy
from streamer.media.source import Source


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
