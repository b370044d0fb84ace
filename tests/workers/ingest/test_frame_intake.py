"""`FrameIntake` measures and encodes frames in groups, as one by one."""

import av
import numpy as np
import pytest

from nvila_core.resolution.meter import Meter
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.jpeg import luma_plane, to_bgr
from streamer.media.source import DecodedFrame
from tests.support.ingest_bench import Bench
from workers.ingest.recording_run import RecordingRun


def frame(pts: float, pix_fmt: str) -> DecodedFrame:
    """Return a frame of noise; no converter of FFmpeg takes the pixels of `gray32le`."""
    image = av.VideoFrame(96, 64, "gray32le")
    if pix_fmt != "gray32le":
        pixels = np.random.default_rng(round(pts)).integers(0, 256, (64, 96, 3), np.uint8)
        image = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(format=pix_fmt)
    return DecodedFrame(image, pts, 1_800_000_000.0 + pts, 0, 1.0)


@pytest.fixture
def run(bench: Bench) -> RecordingRun:
    return RecordingRun(bench.context, bench.attach("film.mp4"), stop=lambda: False)


def test_a_group_gives_what_its_frames_give_one_by_one(bench: Bench, run: RecordingRun) -> None:
    frames = [frame(n, kind) for n, kind in enumerate(("yuv420p", "yuv422p", "rgb24", "nv12"))]
    alone = RecordingRun(bench.context, run.spec, stop=lambda: False).intake
    meter = Meter(bgr=True)

    together = list(run.intake.encode(frames))

    for one, given in zip(together, frames, strict=True):
        (apart,) = alone.encode([given])
        assert (one.jpeg, one.measures) == (apart.jpeg, apart.measures)
        assert one.measures == meter.measure(*(luma_plane(given.image) or (to_bgr(given.image),)))
        assert (one.time, one.pts) == (given.time, given.pts)
        assert one.decode_ms > given.decode_ms
    assert (run.counters.width, run.counters.height) == (96, 64)


def test_frames_before_one_that_cannot_be_converted_are_stored(
    bench: Bench, run: RecordingRun
) -> None:
    # given frames that wait, one of which has pixels that nothing converts
    for number, kind in enumerate(("yuv420p", "rgb24", "gray32le", "yuv420p")):
        run._batch.add(frame(number, kind))

    # when they are stored
    with pytest.raises(StreamerError) as caught:
        run._store_batch()

    # then those before it are
    assert caught.value.code is ErrorCode.STREAM_CODEC_UNSUPPORTED
    assert [ref.pts for ref in bench.frames.newest(run.spec.id, 9)] == [0, 1]
    assert run.counters.sampled == 2
