"""A model worker whose model is a server elsewhere, in the process of the test."""

import threading

import pytest

from tests.support.scripted_model import MODEL, ScriptedModel
from workers import context
from workers.context import WorkerContext
from workers.remote.backend import RemoteBackend

KEY = "sk-Zr3vLnXp9mBdTy5nQh"


@pytest.fixture
def server():
    with ScriptedModel() as running:
        yield running


@pytest.fixture
def remote(settings, server):
    """The settings of a worker that asks `server`."""
    return settings.model_copy(
        update={
            "backend": "openai",
            "base_url": server.url,
            "model": MODEL,
            "model_api_key": KEY,
            "worker_slots": 4,
        }
    )


@pytest.fixture
def own(remote, connections):
    """This process as a model worker that asks `server`."""
    with RemoteBackend(remote, connections.clock) as backend:
        installed = WorkerContext(
            settings=remote, connections=connections, model_name=MODEL, backend=backend
        )
        context.install(installed)
        context.enter_slot(threading.Event())
        yield installed
    context.install(None)
