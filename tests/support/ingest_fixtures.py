"""Fixtures of tests that read cameras: the cameras, and an installation without workers."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from streamer.demo.loopback_camera import LoopbackCamera
from streamer.redis_client.connections import Connections
from streamer.settings import Settings
from tests.support.cameras import require_gst, write_units
from tests.support.ingest_bench import Bench
from tests.support.videos import write_video


@pytest.fixture
def bench(settings: Settings, connections: Connections) -> Bench:
    """An installation without workers."""
    return Bench(settings, connections)


@pytest.fixture(scope="session")
def units(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seconds of numbered H.264 pictures for a `GstCamera`; skips if that cannot run."""
    require_gst()
    folder = tmp_path_factory.mktemp("units")
    write_video(folder / "v.mp4", seconds=2)
    return write_units([folder / "v.mp4"], folder / "v.units")


@pytest.fixture(scope="session")
def loopback(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackCamera]:
    """A camera that repeats two seconds of numbered pictures."""
    video = tmp_path_factory.mktemp("loopback") / "v.mp4"
    write_video(video, seconds=2)
    with LoopbackCamera(video) as camera:
        yield camera
