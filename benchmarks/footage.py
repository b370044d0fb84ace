"""Video to measure with: the demo's rendered street at any size and rate."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from nvila_core.demo.video import StreetVideo

NOISE = 2.0
"""Standard deviation, of 255: enlarged pictures have none of their own, and cameras do."""


def write_street(path: Path, seed: int, seconds: float, fps: int, size: tuple[int, int]) -> None:
    """Encode as H.264 without B-frames, a key frame a second, like a camera does."""
    width, height = size
    rng = np.random.default_rng(seed)
    bank = rng.normal(0.0, NOISE, 2 * width * height).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.gop_size = fps
        stream.options = {"crf": "23", "preset": "veryfast", "bf": "0"}
        for index, picture in enumerate(StreetVideo(seed, seconds, fps=fps)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(width, height, "yuv420p")
            planes = frame.to_ndarray()
            luma = planes[:height]
            start = int(rng.integers(len(bank) - luma.size))
            noise = bank[start : start + luma.size].reshape(luma.shape)
            planes[:height] = np.clip(luma + noise, 0, 255)
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
