"""Encoded test videos: every frame shows its number, readable after lossy coding."""

import io
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_BITS = 10
_TIME_BASE = Fraction(1, 90_000)


def numbered_picture(number: int, width: int = 320, height: int = 240) -> np.ndarray:
    """Return RGB uint8 [height, width, 3]: a bar code of `number`, and a moving box below."""
    picture = np.full((height, width, 3), 96, dtype=np.uint8)
    bar = width // _BITS
    for bit in range(_BITS):
        picture[: height // 4, bit * bar : (bit + 1) * bar] = 235 if number >> bit & 1 else 16
    left = (number * 7) % (width - width // 5)
    picture[height // 2 : height * 3 // 4, left : left + width // 5] = (200, 40, 40)
    return picture


def number_of(picture: np.ndarray) -> int:
    """Return the number in a `numbered_picture`; `picture` is [height, width, channels]."""
    height, width = picture.shape[:2]
    bar = width // _BITS
    row = picture[height // 8].mean(axis=-1)
    return sum(1 << bit for bit in range(_BITS) if row[bit * bar + bar // 2] > 128)


def decoded_numbers(video: bytes) -> list[int]:
    """Decode a whole video, and return the number that each of its pictures shows."""
    with av.open(io.BytesIO(video), "r") as container:
        return [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def write_video(
    path: Path,
    *,
    times: Sequence[float] | None = None,
    seconds: float = 2.0,
    fps: int = 25,
    width: int = 320,
    height: int = 240,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 0,
    rotation: float = 0.0,
    pictures: Sequence[np.ndarray] | None = None,
    options: Mapping[str, str] | None = None,
    time_base: Fraction = _TIME_BASE,
    container_options: Mapping[str, str] | None = None,
) -> list[float]:
    """Encode numbered pictures (or `pictures`) at `times` in seconds, and return these times.

    Without `times`, encode `fps` pictures per second for `seconds`. `options` go to the encoder.
    """
    if times is None:
        times = [n / fps for n in range(round(seconds * fps))]
    defaults = {
        "libx264": {"preset": "ultrafast", "x264-params": "log-level=none:threads=1", "crf": "20"},
        "libx265": {"preset": "ultrafast", "x265-params": f"log-level=none:bframes={b_frames}"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
        "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
    }
    settings = {**defaults.get(codec, {}), **(options or {})}
    with av.open(str(path), "w", options=dict(container_options or {})) as container:
        stream = container.add_stream(codec, rate=fps, options=settings)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.gop_size, stream.max_b_frames = gop, b_frames
        stream.time_base = stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        for number, time in enumerate(times):
            pixels = pictures[number] if pictures else numbered_picture(number, width, height)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = round(time / time_base), time_base
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return list(times)


def write_audio(path: Path, seconds: float = 1.0) -> None:
    """Write a file with sound and without pictures."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16_000, layout="mono")
        for start in range(0, round(seconds * 16_000), 1024):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((1, 1024), dtype=np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = 16_000, start
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
