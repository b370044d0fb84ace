"""A database that does not answer: it is given up after a while, and stops nothing else."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest

from streamer.api import database_threads
from streamer.api.app import create_app
from streamer.api.database_threads import MAX_SEARCHES
from streamer.domain.result import Result
from streamer.domain.stream import StreamSpec
from streamer.errors import ErrorCode, StreamerError
from streamer.service import Service
from streamer.settings import Settings
from streamer.timeline.results import Timeline
from tests.support.relay import Relay

HOUR = 3600.0

READERS = 60


class FreezingRelay(Relay):
    """Relays to a server, which seems frozen while `thawed` is not set."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.thawed = threading.Event()
        self.thawed.set()

    async def pause(self) -> None:
        while not self.thawed.is_set():
            await asyncio.sleep(0.01)


@dataclass
class Database:
    """A real database that can be frozen, before or after its first use by the client."""

    url: str
    used: bool
    freeze: Callable[[], object]
    thaw: Callable[[], object]


# An SQLite file has no server to freeze; a lock on it has the same effect
@pytest.fixture(params=["sqlite", "postgresql", "postgresql, in use"])
def database(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Database]:
    if "postgresql" in request.param:
        name = request.getfixturevalue("postgres_database")
        with FreezingRelay(request.getfixturevalue("postgres_port")) as relay:
            url = f"postgresql+psycopg://test@127.0.0.1:{relay.port}/{name}"
            yield Database(url, "in use" in request.param, relay.thawed.clear, relay.thawed.set)
            relay.thawed.set()
        return
    path = settings.data_dir / "frozen.db"
    path.parent.mkdir(parents=True, exist_ok=True)
    blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def freeze() -> None:
        for statement in ("PRAGMA locking_mode=EXCLUSIVE", "BEGIN EXCLUSIVE", "COMMIT"):
            blocker.execute(statement)

    yield Database(f"sqlite:///{path}", False, freeze, blocker.close)
    blocker.close()


@pytest.fixture
def postgres(postgres_port: int, postgres_database: str) -> str:
    return f"postgresql+psycopg://test@127.0.0.1:{postgres_port}/{postgres_database}"


def result(name: str, **fields: object) -> Result:
    values = {"request_id": name, "kind": "caption", "stream_id": "str_1", "stream_name": "yard"}
    return Result(**values | {"prompt": "?", "text": "a dog"} | fields)


def test_readers_of_a_frozen_database_stop_no_other_request(settings, database, monkeypatch):
    # given a stream, and a database that freezes for as long as the test wants
    defaults = (MAX_SEARCHES, HOUR)
    monkeypatch.setattr(database_threads.DatabaseThreads.__init__, "__defaults__", defaults)
    monkeypatch.setitem(Timeline.__init__.__kwdefaults__, "time_limit", HOUR)
    Timeline(database.url).close()
    client = Service(settings.model_copy(update={"database_url": database.url}))
    client.registry.create(StreamSpec(name="yard", url="rtsp://yard/", live=True), "rtsp://yard/")
    if database.used:
        client.timeline.record([result("a")])
    database.freeze()

    async def ask() -> None:
        app = create_app(client)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            # when many read the results at once
            readers = [asyncio.create_task(http.get("/v1/results")) for _ in range(READERS)]
            while len(pool := app.state.searches._pool._threads) < MAX_SEARCHES:
                await asyncio.sleep(0.01)
            # then the streams are listed and shown at once, as long as any of them waits
            for path in ("/v1/streams", "/v1/streams/yard", "/v1/queries", "/healthz"):
                assert (await http.get(path)).status_code == 200
                assert not any(reader.done() for reader in readers)
            assert len(pool) == MAX_SEARCHES
            # and the readers get their answers, or the reason, when it thaws
            database.thaw()
            for answer in await asyncio.gather(*readers):
                assert answer.status_code in (200, 503)
            assert (await http.get("/v1/results")).status_code == 200

    asyncio.run(ask())
    client.close()


def test_a_reader_is_told_after_a_while(settings, database, monkeypatch):
    monkeypatch.setattr(database_threads.DatabaseThreads.__init__, "__defaults__", (2, 0.5))
    Timeline(database.url).close()
    client = Service(settings.model_copy(update={"database_url": database.url}))
    if database.used:
        client.timeline.record([result("a")])
    database.freeze()

    async def ask() -> None:
        transport = httpx.ASGITransport(app=create_app(client))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            answers = await asyncio.gather(*(http.get("/v1/results") for _ in range(READERS)))
            for answer in answers:
                assert answer.status_code == 503
                error = answer.json()["error"]
                assert error["code"] == "DATABASE_UNAVAILABLE"
                assert "did not answer within 0.5 s" in error["message"]
            database.thaw()
            while (await http.get("/v1/results")).status_code != 200:
                await asyncio.sleep(0.1)

    asyncio.run(ask())
    client.close()


def test_a_call_to_a_frozen_server_ends_and_the_next_one_works(postgres_port, postgres_database):
    with FreezingRelay(postgres_port) as relay:
        url = f"postgresql+psycopg://test@127.0.0.1:{relay.port}/{postgres_database}"
        timeline = Timeline(url, time_limit=0.5)
        timeline.record([result("a")])
        relay.thawed.clear()
        for call in (timeline.ping, timeline.query, lambda: timeline.record([result("b")])):
            # each on the connection that was open, then on a new one
            with pytest.raises(StreamerError, match=r"did not answer|failed") as caught:
                call()
            assert caught.value.code is ErrorCode.DATABASE_UNAVAILABLE
            relay.thawed.set()
            timeline.ping()
            relay.thawed.clear()
        relay.thawed.set()
        assert timeline.get("a") is not None
        timeline.close()


def test_a_frozen_server_is_a_missing_part(settings, postgres_port, postgres_database, monkeypatch):
    monkeypatch.setattr("streamer.timeline.database.MAX_PING_SECONDS", 0.5)
    with FreezingRelay(postgres_port) as relay:
        url = f"postgresql+psycopg://test@127.0.0.1:{relay.port}/{postgres_database}"
        with Service(settings.model_copy(update={"database_url": url})) as client:
            client.timeline.ping()
            relay.thawed.clear()
            database = next(part for part in client.health.parts() if part.name == "database")
            assert not database.up
            relay.thawed.set()


def test_closing_ends_the_calls_that_run(postgres_port, postgres_database):
    with FreezingRelay(postgres_port) as relay:
        url = f"postgresql+psycopg://test@127.0.0.1:{relay.port}/{postgres_database}"
        timeline = Timeline(url, time_limit=3600)
        relay.thawed.clear()
        failures: list[StreamerError] = []

        def ping() -> None:
            try:
                timeline.ping()
            except StreamerError as error:
                failures.append(error)

        thread = threading.Thread(target=ping)
        thread.start()
        while not timeline.database._running:
            pass
        timeline.close()
        thread.join(60)
        assert not thread.is_alive()
        assert len(failures) == 1


def test_a_server_that_was_restarted_is_used_again_at_once(postgres):
    import psycopg

    timeline = Timeline(postgres)
    timeline.record([result("a")])
    with psycopg.connect(postgres.replace("+psycopg", ""), autocommit=True) as admin:
        admin.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND datname = current_database()"
        )
    assert timeline.get("a") is not None
    timeline.close()


def test_odd_values_in_a_query_of_postgresql_are_one_sentence(settings, postgres):
    client = Service(settings.model_copy(update={"database_url": postgres}))
    client.timeline.record([result("a", text="a 100% red_car")])

    async def ask() -> None:
        transport = httpx.ASGITransport(app=create_app(client))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            for query in ("q=%00", "q=a%00b", "stream=%00", "cursor=%00", "q=%ED%A0%80"):
                answer = await http.get(f"/v1/results?{query}")
                assert answer.status_code in (200, 404, 422), (query, answer.text)
            for query, count in (("q=RED_car", 1), ("q=%25", 1), ("q='", 0), ("q=%5C", 0)):
                answer = await http.get(f"/v1/results?{query}")
                assert len(answer.json()["results"]) == count, query

    asyncio.run(ask())
    with pytest.raises(StreamerError) as caught:
        client.results(q="a\0b")
    assert caught.value.code is ErrorCode.INVALID_REQUEST
    client.close()


def test_a_result_that_postgresql_cannot_hold_is_named(postgres):
    timeline = Timeline(postgres)
    with pytest.raises(StreamerError, match="upgrade the recorder") as caught:
        timeline.record([result("a"), result("b", vision_tokens=2**40)])
    assert caught.value.code is ErrorCode.RECORD_UNREADABLE
    assert timeline.record([result("a")]) == 1
    timeline.close()
