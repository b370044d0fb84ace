"""Fixtures of all tests: a real Valkey and settings for it. `pytest_plugins` lists more."""

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest
import redis
import structlog

from streamer.clock import ServerClock, SystemClock
from streamer.local.redis_server import EmbeddedServer
from streamer.media import onvif
from streamer.redis_client.connections import Connections, connect
from streamer.service import Service
from streamer.settings import ENV_PREFIX, Settings

if TYPE_CHECKING:
    from fastapi.testclient import TestClient

# PyTorch's threads wait for each other on tiny models, all the more beside other test processes
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Programs in the background of a shell ignore Ctrl-C; the tests, and what they start, must not.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Imports make no garbage, and looking for it took a seventh of the time to collect the tests.
gc.disable()

pytest_plugins = [
    "tests.support.api_server",
    "tests.support.browser",
    "tests.support.fork_server",
    "tests.support.cpu_report",
    "tests.support.databases",
    "tests.support.ingest_fixtures",
    "tests.support.installation",
    "tests.support.mosquitto",
    "tests.support.chat_service",
    "tests.support.postgres",
    "tests.support.staged_camera",
    "tests.support.worker_process",
]

# By default structlog draws each traceback with all local variables, which takes half a second.
structlog.configure(
    processors=[
        *structlog.get_config()["processors"][:-1],
        structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback
        ),
    ]
)

# A slow example is no failure; in the default suite tests that do not say how many have fewer.
hypothesis.settings.register_profile("quick", deadline=None, max_examples=40)
hypothesis.settings.register_profile("slow too", deadline=None, max_examples=100)


def pytest_configure(config: pytest.Config) -> None:
    """Choose the number of examples, before test modules are imported."""
    quick = "not slow" in config.option.markexpr
    hypothesis.settings.load_profile("quick" if quick else "slow too")


ROOT = Path(__file__).parents[1]

_SLOW_ROOMS = ("workers", "examples", "house", "streamer/local", "streamer/demo", "streamer/cli")
"""Folders of tests that start programs, or wait for them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let each test process begin with its share of the tests that start programs or wait.

    pytest-xdist gives each process a part of the list, and who is done takes from the end of what
    others have: if slow tests came last, all but one would wait for it. Tests of one file stay
    together, as do those of the shared installation and those on PostgreSQL, so that one process
    starts each.
    """
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    slow: dict[str, list[pytest.Item]] = {}
    quick: list[pytest.Item] = []
    for item in items:
        room = item.path.relative_to(ROOT / "tests").as_posix()
        if "installation" in getattr(item, "fixturenames", ()):
            slow.setdefault("installation", []).append(item)
        elif "postgres" in item.name or "postgres_port" in getattr(item, "fixturenames", ()):
            slow.setdefault("postgresql", []).append(item)
        elif room.startswith(_SLOW_ROOMS) or "/" not in room:
            slow.setdefault(room, []).append(item)
        else:
            quick.append(item)
    shares: list[list[pytest.Item]] = [[] for _ in range(processes)]
    for number, group in enumerate(sorted(slow.values(), key=len)):
        shares[number % processes] += group
    size = len(items) // processes
    for share in shares[:-1]:
        missing = max(0, size - len(share))
        share += quick[:missing]
        del quick[:missing]
    shares[-1] += quick
    items[:] = [item for share in shares for item in share]


def pytest_collection_finish() -> None:
    """Collect garbage again, but never look for it among what the imports made."""
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the developer's own STREAMER_* variables, which would change the tests.

    No test sends multicast into the network of the machine: it goes to a closed port.
    """
    monkeypatch.setattr(onvif, "GROUP", ("127.0.0.1", 9))
    _remove_own_variables(monkeypatch)


def _remove_own_variables(patch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(ENV_PREFIX)]:
        patch.delenv(name)


@pytest.fixture(autouse=True)
def _same_logging() -> Iterator[None]:
    """Undo what a command that ran in the test's process set up for its own log."""
    before = structlog.get_config()
    yield
    if structlog.get_config() != before:
        structlog.configure(**before)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """A real server for the whole run of one test process; its `url` contains the password."""
    with EmbeddedServer(
        tmp_path_factory.mktemp("valkey"), persistent=False, max_memory=512 * 2**20
    ) as server:
        yield server


@pytest.fixture(scope="session")
def _shared_client(valkey: EmbeddedServer) -> Iterator[redis.Redis]:
    client = connect(valkey.url)
    yield client
    client.close()


@pytest.fixture
def redis_client(_shared_client: redis.Redis) -> redis.Redis:
    """A client of `valkey`, which is emptied first."""
    _shared_client.flushall()
    return _shared_client


@pytest.fixture(scope="session")
def _default_settings(valkey: EmbeddedServer) -> Settings:
    """Settings that are read once, because that takes longer than many a test."""
    with pytest.MonkeyPatch.context() as patch:
        _remove_own_variables(patch)
        # On a busy machine pictures are soon old and questions wait: other tests are about that.
        return Settings(
            redis_url=valkey.url, log_level="debug", stale_after=600.0, max_query_wait=3600.0
        )


@pytest.fixture
def settings(
    _default_settings: Settings,
    redis_client: redis.Redis,
    empty_timeline: Callable[[Path], str],
    tmp_path: Path,
) -> Settings:
    """Settings of an empty installation: no keys, no files but an empty timeline."""
    empty_timeline(tmp_path / "data")
    return _default_settings.model_copy(update={"data_dir": tmp_path / "data"}, deep=True)


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
def now(monkeypatch: pytest.MonkeyPatch) -> float:
    """The time of all clocks of this process, in seconds since the Unix epoch: it stands still.

    What a test calls a second old then is that, however long the test takes.
    """
    moment = time.time()
    for kind in (SystemClock, ServerClock):
        monkeypatch.setattr(kind, "time", lambda _: moment)
    return moment


@pytest.fixture
def eventually() -> Callable[..., None]:
    """Wait until another process makes a condition true: `eventually(lambda: ...)`."""

    def wait(condition: Callable[[], object], timeout: float = 120.0, message: str = "") -> None:
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
