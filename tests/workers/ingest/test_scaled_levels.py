"""Streams whose pictures have more than 8 bits: the state says that they are scaled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from streamer.domain.stream import StreamState
from tests.support.ingest_bench import Bench


def write(path: Path, pix_fmt: str, low: int, high: int) -> Path:
    """Write ten grey or coloured frames of 16 bits whose values go from `low` to `high`."""
    ramp = np.repeat(np.linspace(low, high, 64)[None], 16, axis=0).astype(np.uint16)
    pixels = ramp if pix_fmt == "gray16le" else np.stack([ramp, ramp, ramp], axis=-1)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("ffv1", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 16, pix_fmt
        for number in range(10):
            wide = "gray16le" if pix_fmt == "gray16le" else "rgb48le"
            frame = av.VideoFrame.from_ndarray(pixels, wide).reformat(format=pix_fmt)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("pix_fmt", ["gray16le", "gbrp16le"])
@pytest.mark.parametrize(
    ("low", "high", "codes"), [(29_000, 31_000, ["STREAM_LEVELS_SCALED"]), (0, 65_535, [])]
)
def test_a_recording_says_that_its_pictures_are_scaled(
    bench: Bench, tmp_path: Path, pix_fmt: str, low: int, high: int, codes: list[str]
) -> None:
    spec = bench.attach(write(tmp_path / "thermal.mkv", pix_fmt, low, high))

    with bench.run(spec) as slot:
        slot.join()

    status = bench.status(spec)
    assert (status.state, status.error) == (StreamState.ENDED, None)
    assert [warning.code for warning in status.warnings] == codes
    assert all("thermal" in warning.message for warning in status.warnings)


def test_a_live_stream_says_so_too(
    bench: Bench, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    path = write(tmp_path / "thermal.mkv", "gray16le", 29_000, 31_000)
    spec = bench.attach(path, live=True)

    with bench.run(spec) as slot:
        eventually(lambda: bool(bench.status(spec).warnings))
        slot.stop()

    assert [warning.code for warning in bench.status(spec).warnings] == ["STREAM_LEVELS_SCALED"]
