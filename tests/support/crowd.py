"""Many cameras of a `PageService` that run by themselves: pictures and captions, from records."""

import itertools
import threading
import time
from typing import Any, Self

import cv2

from nvila_core.demo.video import StreetVideo
from nvila_core.resolution.policy import Measures
from streamer.domain.stream import StreamState
from tests.support.page_service import SIZE, Camera, PageService

SAYINGS = (
    "A red car turns into the yard and stops before the gate.",
    "Two people carry a box towards the door; a dog follows them.",
    "Nobody is in sight. The light of the lamp flickers.",
    "A van waits with its lights on while somebody opens the barrier.",
)
_SCENES = 12


class Crowd:
    """`count` cameras: each shows a picture a second, and a caption every `window` seconds."""

    def __init__(self, service: PageService, count: int, window: float = 4.0) -> None:
        self.cameras = [service.camera(f"camera-{number:02}") for number in range(1, count + 1)]
        self._jpegs = [_jpeg(number) for number in range(_SCENES)]
        self._window = window
        self._turn = itertools.count()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="crowd")

    def __enter__(self) -> Self:
        for camera in self.cameras:
            self.show(camera)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def show(self, camera: Camera) -> None:
        """Store a picture of this moment."""
        now = time.time()
        jpeg = self._jpegs[next(self._turn) % len(self._jpegs)]
        measures = Measures(*SIZE, change=0.05)
        frame = camera.client.frames.put(camera.stream.id, jpeg, measures, time=now, pts=now)
        camera.frames = [*camera.frames[-7:], frame]
        camera.report(StreamState.RUNNING)

    def say(self, camera: Camera, **fields: Any) -> None:
        """Publish a caption of the newest pictures."""
        camera.caption(SAYINGS[next(self._turn) % len(SAYINGS)], **fields)

    def _run(self) -> None:
        """Let the cameras take turns, so that something happens all the time."""
        pause, rounds = 1.0 / len(self.cameras), max(1, round(self._window))
        for turn in itertools.count():
            place = turn % len(self.cameras)
            camera = self.cameras[place]
            self.show(camera)
            if (turn // len(self.cameras) + place) % rounds == 0:
                self.say(camera)
            if self._stopping.wait(pause):
                return


def _jpeg(number: int) -> bytes:
    picture = StreetVideo(2_000_000_011 + 7 * number, 60.0, size=SIZE).frame_at(20.0 + number)
    encoded = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 82])[1]
    return bytes(encoded.tobytes())
