"""A search ends in the database when its client leaves, and only so many run at once."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import text

from streamer.api.database_threads import MAX_SEARCHES, DatabaseThreads
from streamer.errors import ErrorCode, StreamerError
from streamer.timeline.database import CALLER, Caller, Database
from streamer.timeline.results import Timeline
from tests.support.api_server import ApiServer

HOUR = 3600.0
LONG = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
    "SELECT count(*) FROM n",
    "postgresql": "SELECT pg_sleep(3600)",
}
WAITING = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE datname = current_database() AND wait_event_type = 'Lock'"
)


@pytest.fixture
def postgres(postgres_port, postgres_database) -> str:
    return f"postgresql+psycopg://test@127.0.0.1:{postgres_port}/{postgres_database}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request, tmp_path) -> Iterator[Database]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path}/results.db"
    else:
        url = request.getfixturevalue("postgres")
    found = Database(url, time_limit=HOUR, upgrade=True)
    yield found
    found.close()


def test_a_call_ends_when_its_caller_leaves(database):
    # given a call that takes an hour
    caller = Caller()
    failures: list[ErrorCode] = []
    running = threading.Event()

    def call(connection):
        running.set()
        return connection.execute(text(LONG[database.dialect])).scalar()

    def search():
        CALLER.set(caller)  # of this thread
        for _ in range(2):
            try:
                database.read(call)
            except StreamerError as error:
                failures.append(error.code)

    thread = threading.Thread(target=search, daemon=True)
    thread.start()
    assert running.wait(60)
    # when its caller leaves
    caller.leave()
    thread.join(60)
    # then it ends, the next one of this caller is refused, and others are answered
    assert failures == [ErrorCode.CANCELLED] * 2
    assert database.read(lambda connection: connection.execute(text("SELECT 1")).scalar()) == 1


@contextlib.contextmanager
def asked(port: int, path: str) -> Iterator[None]:
    """Ask for `path`, and leave without having read the response."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        yield


def test_searches_whose_clients_leave_are_ended_in_postgresql(
    settings, postgres, eventually, monkeypatch
):
    import psycopg

    # given searches that wait for a lock on the table; none would end by itself
    monkeypatch.setattr(DatabaseThreads.__init__, "__defaults__", (MAX_SEARCHES, HOUR))
    monkeypatch.setitem(Timeline.__init__.__kwdefaults__, "time_limit", HOUR)
    Timeline(postgres).close()
    direct = postgres.replace("+psycopg", "")
    with (
        ApiServer(settings.model_copy(update={"database_url": postgres})) as server,
        psycopg.connect(direct) as locking,
        psycopg.connect(direct, autocommit=True) as admin,
    ):
        server.client.timeline.ping()

        def waiting() -> int:
            row = admin.execute(WAITING).fetchone()
            assert row is not None
            return int(row[0])

        locking.execute("LOCK TABLE results IN ACCESS EXCLUSIVE MODE")
        with contextlib.ExitStack() as clients:
            for n in range(3 * MAX_SEARCHES):
                clients.enter_context(asked(server.port, f"/v1/results?q=car{n}"))
            # then only so many run at once
            eventually(lambda: waiting() == MAX_SEARCHES)
            searches = server.app.state.searches._pool
            eventually(lambda: searches._work_queue.qsize() == 2 * MAX_SEARCHES)
        # when their clients leave, then none is left in the database, though the lock is held
        eventually(lambda: waiting() == 0)
        # and the next search is answered
        locking.rollback()
        assert server.client.results(q="car").results == []
