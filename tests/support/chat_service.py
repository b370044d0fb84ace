"""One API, one model worker with the demo model and two cameras, for the programs that chat."""

import base64
import io
import time
from collections.abc import Iterator
from contextlib import ExitStack

import cv2
import numpy as np
import pytest
from PIL import Image

from nvila_core.demo import CHECKPOINT
from nvila_core.resolution.meter import Meter
from streamer.domain.stream import StreamSpec
from streamer.local.redis_server import EmbeddedServer
from streamer.service import Service
from streamer.settings import Settings
from tests.support.api_server import ApiServer
from tests.support.installation import has_demo_model
from tests.support.model_worker import ModelWorker


class ChatService:
    """What a program needs to chat.

    Attributes:
        url: the address that clients call base_url.
        client: the installation; its cameras are `gate`, of five frames, and `yard`, of one.
    """

    def __init__(self, server: ApiServer) -> None:
        self.server = server
        self.url = f"{server.url}/v1"
        self.client: Service = server.client
        self.attach("gate", 5)
        self.attach("yard", 1)

    def attach(self, name: str, frames: int) -> StreamSpec:
        """Attach a camera that has seen `frames` frames, the last just now."""
        spec = StreamSpec(name=name, url=f"rtsp://camera/{name}", live=True)
        self.client.registry.create(spec, spec.url)
        meter, now = Meter(), time.time()
        for number in range(frames):
            shown = picture(number)
            self.client.frames.put(
                spec.id,
                cv2.imencode(".jpg", cv2.cvtColor(shown, cv2.COLOR_RGB2BGR))[1].tobytes(),
                meter.measure(shown),
                time=now - frames + number + 1,
                pts=float(number),
            )
        return spec


def picture(
    seed: int = 0, width: int = 320, height: int = 240
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Return RGB uint8 [height, width, 3] that JPEG hardly changes."""
    coarse = np.random.default_rng(seed).integers(0, 255, (6, 8, 3), np.uint8)
    return np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def data_url(seed: int = 0, form: str = "JPEG", **size: int) -> str:
    """Return a picture as a `data:` address."""
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, **size)).save(buffer, form)
    packed = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/{form.lower()};base64,{packed}"


def shown(address: str, **fields: str) -> dict[str, object]:
    """Return a content part with a picture."""
    return {"type": "image_url", "image_url": {"url": address, **fields}}


@pytest.fixture(scope="module")
def chat_service(
    valkey: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ChatService]:
    """The service, for all tests of a module. Their tests must not use `redis_client`."""
    if not has_demo_model():
        pytest.skip("the demo checkpoint has not been trained yet")
    settings = Settings(
        redis_url=valkey.url,
        data_dir=tmp_path_factory.mktemp("chat"),
        model=str(CHECKPOINT),
        stale_after=86_400,
        max_query_wait=86_400,
        frame_ttl=86_400,
        worker_slots=8,
        allowed_hosts=["localhost"],
    )
    with Service(settings) as client:
        client.connections.main.flushall()
    with ExitStack() as running:
        running.enter_context(ModelWorker(settings))
        yield ChatService(running.enter_context(ApiServer(settings)))
