"""A camera on a street that shows what the test says, for as long as it says so."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self

import pytest

from nvila_core.demo.video import StreetVideo, write_video
from nvila_core.demo.world import Actor
from streamer.demo.loopback_camera import LoopbackCamera

Scene = Literal["empty", "car"]

_SEED = 3_000_000_017
_SECONDS = 3.0


class StagedCamera:
    """An RTSP camera on a street that is empty, or where a red car is parked.

    The camera loops a video of a few seconds, and opens the file at the start of each loop: `show`
    replaces the file. So no test has to keep up with a video.
    """

    def __init__(self, folder: Path) -> None:
        self._shown = folder / "street.mp4"
        self._scenes = {scene: folder / f"{scene}.mp4" for scene in ("empty", "car")}
        for scene, path in self._scenes.items():
            _write(path, scene == "car")
        self.show("empty")
        self._camera = LoopbackCamera(self._shown)

    def __enter__(self) -> Self:
        self._camera.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address of the camera."""
        return self._camera.url

    def show(self, scene: Scene) -> None:
        """Show a scene from the next loop on, within a few seconds."""
        link = self._shown.with_suffix(".new")
        os.link(self._scenes[scene], link)
        link.replace(self._shown)

    def stop(self) -> None:
        """Disconnect everything."""
        self._camera.stop()


def _write(path: Path, car: bool) -> None:
    video = StreetVideo(_SEED, _SECONDS)
    parked = Actor("car", "red", 1.0, ((0.0, 0.5, 0.6), (_SECONDS, 0.5, 0.6)))
    video.scene = dataclasses.replace(video.scene, actors=(parked,) if car else ())
    write_video(path, video)


@pytest.fixture
def street(tmp_path: Path) -> Iterator[StagedCamera]:
    """A camera on a street that is empty at first."""
    with StagedCamera(tmp_path) as camera:
        yield camera
