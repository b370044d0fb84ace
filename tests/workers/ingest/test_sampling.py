"""The modes of sampling, from an attached stream to the frames in Redis."""

from collections.abc import Callable
from pathlib import Path

import pytest

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.domain.sampling import Sampling
from streamer.domain.stream import StreamSpec, StreamState
from streamer.queues.models import WATCHES
from tests.support.ingest_bench import Bench, watch
from tests.support.videos import numbered_picture, write_video


def attach(bench: Bench, url: str | Path, sampling: Sampling, **fields: object) -> StreamSpec:
    spec = bench.attach(url, **fields)  # type: ignore[arg-type]
    bench.registry.update(spec.id, sampling=sampling)
    found = bench.registry.find(spec.id)
    assert found is not None
    return found


def times(bench: Bench, spec: StreamSpec) -> list[float]:
    return [round(ref.pts, 2) for ref in bench.frames.newest(spec.id, 500)]


def test_key_frames_of_a_recording(bench: Bench, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=8, gop=50, b_frames=2)
    spec = attach(bench, tmp_path / "v.mp4", Sampling(mode="keyframes"))
    with bench.run(spec) as slot:
        slot.join()
    assert times(bench, spec) == [0, 2, 4, 6]
    counters = bench.status(spec).counters
    # then nothing else was decoded, and nothing was lost
    assert (counters.packets, counters.decoded, counters.sampled) == (200, 4, 4)
    assert counters.dropped.total == 0


def test_changes_of_a_recording(bench: Bench, tmp_path: Path) -> None:
    pictures = [numbered_picture(1 if 75 <= n < 125 else 0) for n in range(200)]
    write_video(tmp_path / "v.mp4", seconds=8, pictures=pictures)
    spec = attach(bench, tmp_path / "v.mp4", Sampling(mode="change", max_interval=60))
    with bench.run(spec) as slot:
        slot.join()
    assert times(bench, spec) == pytest.approx([0, 3, 5], abs=0.2)


def test_rare_frames_of_a_recording_are_exact(bench: Bench, tmp_path: Path) -> None:
    write_video(tmp_path / "v.mp4", seconds=12, gop=37, b_frames=2)
    spec = attach(bench, tmp_path / "v.mp4", Sampling(fps=0.5), watches=[watch(6.0)])
    with bench.run(spec) as slot:
        slot.join()
    assert times(bench, spec) == [0, 2, 4, 6, 8, 10]
    counters = bench.status(spec).counters
    assert counters.decoded < 250
    assert counters.dropped.total == 0
    assert bench.status(spec).state is StreamState.ENDED


def test_a_camera_changes_its_mode_while_it_runs(
    bench: Bench, loopback: LoopbackCamera, eventually: Callable[..., None]
) -> None:
    spec = attach(bench, loopback.url, Sampling(mode="keyframes"), live=True)
    with bench.run(spec):
        eventually(lambda: bench.status(spec).counters.sampled >= 3)
        before = bench.status(spec).counters
        assert before.decoded <= before.sampled + 2
        # when many frames are wanted
        bench.registry.update(spec.id, sampling=Sampling(fps=25))
        eventually(lambda: bench.status(spec).counters.sampled >= before.sampled + 20)
        counters = bench.status(spec).counters
        assert counters.reconnects == 0
        steps = [b - a for a, b in zip(times(bench, spec), times(bench, spec)[1:], strict=False)]
        assert min(steps) < 0.1


def test_a_window_in_which_nothing_changes_is_asked_about_in_time(
    bench: Bench, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    # given a camera that shows the same picture for ever
    still = [numbered_picture(7)] * 50
    write_video(tmp_path / "v.mp4", seconds=2, pictures=still)
    with LoopbackCamera(tmp_path / "v.mp4") as camera:
        spec = bench.attach(camera.url, watch(1.0), live=True)
        bench.registry.update(spec.id, sampling=Sampling(mode="change", max_interval=600))
        found = bench.registry.find(spec.id)
        assert found is not None
        with bench.run(found):
            eventually(lambda: bench.requests(WATCHES))
    (request,) = bench.requests(WATCHES)
    assert len(request.frames) == 1
    assert (request.end - request.start).total_seconds() == pytest.approx(1.0)
