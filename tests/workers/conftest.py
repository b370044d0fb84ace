"""Fixtures of the workers' tests: this process as a gpu worker."""

import threading

import pytest


@pytest.fixture(scope="module")
def model(random_checkpoint):
    """A loaded model, clueless and quick."""
    from nvila_core import NVILA

    return NVILA.from_pretrained(random_checkpoint)


@pytest.fixture
def own(settings, connections, model):
    """This process as a gpu worker."""
    from nvila_core import Engine
    from workers import context
    from workers.context import WorkerContext

    with Engine(model) as engine:
        installed = WorkerContext(
            settings=settings, connections=connections, engine=engine, model_name=model.name
        )
        context.install(installed)
        context.enter_slot(threading.Event())
        yield installed
    context.install(None)
