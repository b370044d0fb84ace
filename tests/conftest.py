"""Fixtures of all tests: a real Valkey and settings for it. `pytest_plugins` lists more."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import redis

from streamer.connections import Connections, connect
from streamer.local.redis_server import EmbeddedServer
from streamer.service import Service
from streamer.settings import ENV_PREFIX, Settings

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

# PyTorch's threads wait for each other on tiny models, all the more beside other test processes
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Programs in the background of a shell ignore Ctrl-C; the tests, and what they start, must not.
signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = [
    "tests.support.api_server",
    "tests.support.fork_server",
    "tests.support.ingest_fixtures",
    "tests.support.installation",
    "tests.support.chat_service",
    "tests.support.postgres",
    "tests.support.worker_process",
]

hypothesis.settings.register_profile("any machine", deadline=None)  # a slow example is no failure
hypothesis.settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests of the shared installation side by side, so that one test process starts it."""
    items.sort(key=lambda item: "installation" not in getattr(item, "fixturenames", ()))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the developer's own STREAMER_* variables, which would change the tests."""
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A real server for the whole run of one test process; its `url` contains the password."""
    with EmbeddedServer(
        tmp_path_factory.mktemp("valkey"), persistent=False, max_memory=512 * 2**20
    ) as server:
        yield server


@pytest.fixture
def redis_client(valkey: EmbeddedServer) -> Iterator[redis.Redis]:
    """A client of `valkey`, which is emptied first."""
    client = connect(valkey.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def settings(valkey: EmbeddedServer, redis_client: redis.Redis, tmp_path: Path) -> Settings:
    """Settings of an empty installation: no keys, no files."""
    return Settings(redis_url=valkey.url, data_dir=tmp_path / "data", log_level="debug")


@pytest.fixture
def connections(settings: Settings) -> Iterator[Connections]:
    """Open connections to the server in `settings`."""
    with Connections(settings) as opened:
        yield opened


@pytest.fixture
def client(settings: Settings) -> Iterator[Service]:
    """The Python client of an empty installation, in which no program runs."""
    with Service(settings) as opened:
        yield opened


@pytest.fixture
def api(client: Service) -> Iterator["TestClient"]:
    """The HTTP API over `client`."""
    from fastapi.testclient import TestClient

    from streamer.api.app import create_app

    with TestClient(create_app(client), base_url="http://127.0.0.1:8080") as opened:
        yield opened


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait until another process makes a condition true: `eventually(lambda: ...)`."""

    def wait(condition: Callable[[], object], timeout: float = 60.0, message: str = "") -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(message or f"did not come true within {timeout} s")
            time.sleep(0.02)

    return wait


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny NVILA-Lite checkpoint in the published layout, with random weights."""
    from nvila_core.checkpoint.random_checkpoint import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny-random")
