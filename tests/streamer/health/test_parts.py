"""A part that is missing is seen everywhere, with the time when it last worked."""

import json
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from streamer import redis_keys
from streamer.api.app import create_app
from streamer.cli.app import app
from streamer.doctor.examination import examine
from streamer.doctor.redis_server import servers
from streamer.domain.part import Part
from streamer.health.parts import CachedHealth
from streamer.local.redis_server import EmbeddedServer
from streamer.service import Service
from streamer.settings import Settings
from streamer.timeline.results import Timeline
from tests.support.clocks import ManualClock
from tests.support.installation import Up
from workers.recorder.worker import Recorder

BEAT = 1_780_000_000.0
BEAT_TEXT = "2026-05-28T20:26:40"


def parts(client: Service) -> dict[str, Part]:
    return {part.name: part for part in client.health.parts()}


def beat(client: Service, timeline: Timeline) -> None:
    """Let a recorder report itself once, at `BEAT`."""
    Recorder(
        client.connections.main, timeline, stopping=threading.Event(), clock=ManualClock(BEAT)
    ).beat()


def test_an_installation_without_programs_names_each_of_them(client: Service) -> None:
    found = parts(client)

    missing = {name for name, part in found.items() if not part.up}
    assert missing == {"ingest worker", "model worker", "recorder"}
    for name in missing:
        message = found[name].message
        assert message is not None
        assert "never seen" in message
        assert "start `streamer" in message


def test_a_recorder_that_died_is_missing_since_its_last_beat(client: Service) -> None:
    # given a recorder that reports itself
    beat(client, client.timeline)
    assert 0 < client.connections.main.ttl(redis_keys.RECORDER) <= 24
    seen = parts(client)["recorder"]
    assert seen.up
    # when it is silent for longer than its lease
    client.connections.main.delete(redis_keys.RECORDER)
    client.connections.main.hset(redis_keys.LAST_SEEN, "recorder", BEAT)
    # then it is missing since then
    gone = parts(client)["recorder"]
    assert not gone.up
    assert gone.message is not None
    assert BEAT_TEXT in gone.message


def test_a_recorder_whose_database_is_broken_says_so(client: Service, tmp_path: Path) -> None:
    # given a recorder whose database file is damaged while it runs
    file = tmp_path / "timeline.db"
    timeline = Timeline(f"sqlite:///{file}")
    beat(client, timeline)
    assert parts(client)["database"].up
    timeline.close()
    for old in tmp_path.glob("timeline.db*"):
        old.unlink()
    file.write_bytes(b"not a database" * 100)
    # when it reports itself
    beat(client, timeline)
    # then the recorder runs, and the database is missing
    found = parts(client)
    assert found["recorder"].up
    assert not found["database"].up
    assert [part.name for part in client.health.missing() if part.name == "database"]


def test_a_dead_server_of_frames_is_missing_since_it_was_last_seen(
    settings: Settings, tmp_path: Path
) -> None:
    with EmbeddedServer(tmp_path / "frames", persistent=False, max_memory=64 << 20) as frames:
        own = settings.model_copy(update={"frames_redis_url": frames.url})
        with Service(own) as client:
            assert parts(client)["frames redis"].up
            frames.stop()

            gone = parts(client)["frames redis"]

    assert not gone.up
    assert gone.last_seen_at is not None
    assert gone.message is not None
    assert "last seen" in gone.message


def test_without_redis_only_that_is_known(settings: Settings, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "main", persistent=False, max_memory=64 << 20) as main:
        own = settings.model_copy(update={"redis_url": main.url})
        with Service(own) as client:
            assert parts(client)["redis"].up
            main.stop()

            (only,) = client.health.parts()

    assert (only.name, only.up) == ("redis", False)
    assert only.last_seen_at is not None


def test_the_api_and_the_metrics_say_what_is_missing(client: Service) -> None:
    client.connections.main.hset(redis_keys.LAST_SEEN, "recorder", BEAT)
    with TestClient(create_app(client), base_url="http://127.0.0.1:8080") as api:
        ready = api.get("/readyz")
        metrics = api.get("/metrics").text
        alive = api.get("/healthz")

    assert (ready.status_code, ready.json()["status"]) == (503, "not ready")
    found = {part["name"]: part for part in ready.json()["parts"]}
    assert not found["recorder"]["up"]
    assert found["recorder"]["last_seen_at"].startswith(BEAT_TEXT)
    assert found["redis"]["up"]
    assert 'streamer_part_up{part="recorder"} 0.0' in metrics
    assert 'streamer_part_up{part="redis"} 1.0' in metrics
    assert 'streamer_part_last_seen_seconds{part="recorder"} 1.78e+09' in metrics
    assert alive.status_code == 200


def test_the_lists_of_the_api_name_what_is_missing(client: Service) -> None:
    # given a recorder that died, and a model worker that never ran
    redis_client = client.connections.main
    redis_client.hset(redis_keys.LAST_SEEN, "recorder", BEAT)
    with TestClient(create_app(client), base_url="http://127.0.0.1:8080") as api:
        lists = [api.get(path).json()["missing"] for path in ("/v1/streams", "/v1/results")]
    # then each list says so, with the time and what to do
    for missing in lists:
        parts = {part["name"]: part for part in missing}
        assert set(parts) == {"ingest worker", "model worker", "recorder"}
        assert parts["recorder"]["last_seen_at"].startswith(BEAT_TEXT)
        assert "streamer worker" in parts["model worker"]["message"]


def test_a_list_does_not_wait_for_the_look_at_a_frozen_server(client: Service) -> None:
    # given a health that is looked up for as long as the test wants
    release = threading.Event()
    looked = client.health.parts
    client.health.parts = lambda **options: (release.wait(60), looked(**options))[1]  # type: ignore[method-assign]
    with TestClient(create_app(client), base_url="http://127.0.0.1:8080") as api:
        listed = api.get("/v1/streams").json()
        assert listed == {"streams": [], "next_cursor": None, "missing": []}
        assert not release.is_set()
        release.set()


def test_the_first_lists_may_be_asked_for_at_once(client: Service) -> None:
    # given threads that take turns as often as they can
    client.health.parts = lambda **options: []  # type: ignore[method-assign]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as callers:
            for _ in range(100):
                # when several are the first to ask what is missing
                health, at_once = CachedHealth(client.health), threading.Barrier(8)

                def ask(health: CachedHealth = health, at_once: Any = at_once) -> list[Part]:
                    at_once.wait(60)
                    return health.missing()

                answers = [callers.submit(ask) for _ in range(8)]
                # then each gets an answer
                assert [answer.result(60) for answer in answers] == [[]] * 8
    finally:
        sys.setswitchinterval(before)


def test_readiness_needs_no_key_and_tells_no_address(client: Service) -> None:
    client.settings.api_keys = ["a-key-of-length"]
    with TestClient(create_app(client), base_url="http://streamer.example") as api:
        assert api.get("/v1/streams").status_code == 401
        ready = api.get("/readyz")

    assert ready.status_code == 503
    assert "redis://" not in ready.text


@pytest.mark.parametrize("command", ["streams", "results"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_the_lists_warn_of_what_is_missing(
    client: Service,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    options: list[str],
) -> None:
    monkeypatch.setenv("STREAMER_REDIS_URL", settings.redis_url or "")
    monkeypatch.setenv("STREAMER_DATA_DIR", str(settings.data_dir))
    client.connections.main.hset(redis_keys.LAST_SEEN, "recorder", BEAT)

    done = CliRunner().invoke(app, [command, *options])

    assert done.exit_code == 0
    assert "No recorder is running, so new results are missing" in done.stderr
    assert f"(last seen {BEAT_TEXT}" in done.stderr
    assert "Warning" not in done.stdout


def test_the_doctor_says_since_when(client: Service, settings: Settings) -> None:
    client.connections.main.hset(redis_keys.LAST_SEEN, "recorder", BEAT)
    client.connections.main.hset(redis_keys.LAST_SEEN, "ingest worker", BEAT)

    found = {c.name: c for c in examine(settings, examinations={"redis": servers})}

    for name in ("recorder", "ingest workers"):
        assert found[name].state == "warn"
        assert BEAT_TEXT in found[name].message
    beat(client, client.timeline)
    again = {c.name: c for c in examine(settings, examinations={"redis": servers})}
    assert again["recorder"].state == "ok"


def test_a_whole_installation_is_ready(installation: Up, eventually: Callable[..., None]) -> None:
    import urllib.request

    def ready() -> Any:
        with urllib.request.urlopen(f"{installation.api_url}/readyz") as answer:
            return json.loads(answer.read())

    with Service(installation.settings) as client:
        eventually(lambda: all(part.up for part in client.health.parts()))
        noted = client.connections.main.hgetall(redis_keys.LAST_SEEN)
    assert isinstance(noted, dict)
    assert set(noted) >= {b"ingest worker", b"model worker", b"recorder", b"database"}
    assert ready()["status"] == "ready"
    assert "Warning" not in installation.cli("results").stderr


def test_what_was_seen_is_read_from_a_server_that_may_not_be_written(
    client: Service, redis_client: redis.Redis
) -> None:
    parts(client)
    redis_client.config_set("min-replicas-to-write", 1)
    try:
        assert parts(client)["redis"].up
    finally:
        redis_client.config_set("min-replicas-to-write", 0)
