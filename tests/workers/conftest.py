"""Fixtures of the workers' tests: this process as a model worker, a cable to a camera."""

import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from streamer.demo.loopback_camera import LoopbackCamera
from tests.support.rtsp_proxy import RtspProxy


@pytest.fixture
def line(loopback: LoopbackCamera) -> Iterator[RtspProxy]:
    """A cable to `loopback` that counts connections, and can be pulled or damaged."""
    port = urlsplit(loopback.url).port
    assert port is not None
    with RtspProxy(port) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def model(random_checkpoint):
    """A loaded model with random weights: small and fast."""
    from nvila_core import NVILA

    return NVILA.from_pretrained(random_checkpoint)


@pytest.fixture
def own(settings, connections, model):
    """This process as a model worker."""
    from nvila_core import Engine
    from workers import context
    from workers.context import WorkerContext
    from workers.gpu.engine_backend import EngineBackend

    with Engine(model) as engine:
        installed = WorkerContext(
            settings=settings,
            connections=connections,
            engine=engine,
            model_name=model.name,
            backend=EngineBackend(engine, settings),
        )
        context.install(installed)
        context.enter_slot(threading.Event())
        yield installed
    context.install(None)
