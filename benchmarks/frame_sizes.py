"""Measure how large a stored 1080p frame is, by what it shows and by `jpeg_quality`.

    python benchmarks/frame_sizes.py [--video FILE] [--json]

The pictures: the demo's rendered street (smooth), pink noise (leaves, gravel and grass are like it:
as much energy in each octave), both as a
camera blurs them and with its noise, and with `--video` ten frames of a
recording, enlarged to 1080p if they are smaller. Beside the size: how many minutes of one camera
`frame_bytes_per_stream` holds at one frame a second, what 15 minutes of 100 cameras need, and of
how many cameras the frames' server of docker/compose.yaml holds 15 minutes.
"""

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from report import publish

from nvila_core.demo.video import StreetVideo
from streamer.frames.jpeg import to_jpeg
from streamer.settings import Settings

WIDTH, HEIGHT = 1920, 1080
QUALITIES = (90, 80, 70)
COMPOSE_BYTES = 0.75 * (2 << 30)
"""What frames may take of `FRAMES_MEMORY` of docker/compose.yaml: see `frame_memory`."""
NOISE = 1.5
"""Standard deviation of the noise that a camera's encoder leaves, of 255."""
BLUR = 1.0
"""Pixels by which lens and encoder blur, as a standard deviation."""

_Picture = NDArray[np.uint8]


def street() -> _Picture:
    """Return a frame of the demo's street, BGR uint8 [1080, 1920, 3]."""
    picture = next(iter(StreetVideo(1, 1.0, fps=1)))
    return with_noise(cv2.resize(picture[..., ::-1], (WIDTH, HEIGHT)))


def pink(contrast: float) -> _Picture:
    """Return pink noise of a standard deviation, of 255, as a grey picture."""
    rng = np.random.default_rng(0)
    spectrum = np.fft.rfft2(rng.normal(size=(HEIGHT, WIDTH)))
    fy, fx = np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None]
    radius = np.maximum(np.hypot(fx, fy), 1 / WIDTH)
    values = np.fft.irfft2(spectrum / radius, (HEIGHT, WIDTH))
    values = np.asarray(cv2.GaussianBlur(values, (0, 0), BLUR))
    values = 128 + contrast * (values - values.mean()) / values.std()
    return with_noise(np.repeat(values[..., None], 3, axis=2))


def with_noise(picture: NDArray[Any]) -> _Picture:
    """Add the noise of a sensor."""
    noise = np.random.default_rng(1).normal(0.0, NOISE, (HEIGHT, WIDTH, 1))
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def recorded(path: Path) -> list[_Picture]:
    """Return ten frames of a recording, evenly spaced, at 1080p."""
    video = cv2.VideoCapture(str(path))
    count = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    found = []
    for number in range(0, count, max(1, count // 10)):
        video.set(cv2.CAP_PROP_POS_FRAMES, number)
        read, picture = video.read()
        if read:
            found.append(cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC))
    return [np.asarray(picture, np.uint8) for picture in found]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--video", type=Path, help="a recording to take frames of, too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    pictures = {
        "rendered street": [street()],
        "pink noise, contrast 20": [pink(20.0)],
        "pink noise, contrast 40": [pink(40.0)],
    }
    if given.video is not None:
        pictures[given.video.name] = recorded(given.video)
    held = Settings().frame_bytes_per_stream
    rows = []
    for name, shown in pictures.items():
        for quality in QUALITIES:
            size = mean(len(to_jpeg(picture, quality)) for picture in shown)
            quarter = 900 * size  # of an hour
            rows.append(
                [
                    name,
                    quality,
                    round(size / 1000),
                    round(held / size / 60),
                    100 * quarter / 1e9,
                    int(COMPOSE_BYTES / min(quarter, held)),
                ]
            )
    header = [
        "1920x1080",
        "jpeg_quality",
        "KB a frame",
        f"minutes in {held >> 20} MiB",
        "GB for 15 min of 100 cameras",
        "cameras in 2 GiB",
    ]
    publish({"rows": rows}, header, rows)


if __name__ == "__main__":
    main()
