"""Write videos to measure with: the demo's rendered street at any size and rate."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from nvila_core.demo.video import StreetVideo

BITS, CELL = 10, 32
"""A frame's number is drawn as BITS squares with sides of CELL pixels."""

NOISE = 2.0
"""Standard deviation of the added noise, of 255: cameras have noise, enlarged pictures none."""


def write_street(
    path: Path,
    seed: int,
    seconds: float,
    fps: int,
    size: tuple[int, int],
    *,
    gop: int | None = None,
    bit_rate: int | None = None,
    numbered: bool = False,
) -> None:
    """Encode a street as H.264 without B-frames, as a camera does.

    There is a key frame every `gop` frames (default: one a second). `bit_rate` is in bits a second
    (default: constant quality). `number_of` reads the numbers of `numbered` frames.
    """
    width, height = size
    rng = np.random.default_rng(seed)
    bank = rng.normal(0.0, NOISE, 2 * width * height).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, fps)
        stream.gop_size = gop or fps
        options: dict[str, object] = {"preset": "veryfast", "bf": "0", "sc_threshold": "0"}
        if bit_rate is None:
            options["crf"] = "23"
        else:
            options |= {"b": str(bit_rate), "maxrate": str(bit_rate), "bufsize": str(bit_rate)}
        stream.options = options
        for index, picture in enumerate(StreetVideo(seed, seconds, fps=fps)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(width, height, "yuv420p")
            planes = frame.to_ndarray()
            luma = planes[:height]
            start = int(rng.integers(len(bank) - luma.size))
            noise = bank[start : start + luma.size].reshape(luma.shape)
            planes[:height] = np.clip(luma + noise, 0, 255)
            if numbered:
                for bit in range(BITS):
                    luma[:CELL, bit * CELL : (bit + 1) * CELL] = 235 if index >> bit & 1 else 16
            frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def number_of(picture: np.ndarray) -> int:
    """Read the number of a numbered frame, uint8 [height, width, channels] in full size."""
    row = picture[CELL // 2].mean(axis=-1)
    return sum(1 << bit for bit in range(BITS) if row[bit * CELL + CELL // 2] > 128)
