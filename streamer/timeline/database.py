"""Connect to the database, SQLite or PostgreSQL, and run calls that end in time."""

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    NoSuchModuleError,
    SQLAlchemyError,
)
from tenacity import (
    retry,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random,
)

from streamer.errors import ErrorCode, StreamerError
from streamer.timeline import schema

MAX_CALL_SECONDS = 10.0
"""Seconds that a call to the database may take."""

MAX_PING_SECONDS = 5.0
"""Seconds after which a database counts as one that does not answer."""

_CONNECT_TIMEOUT = 5
"""Seconds to connect to PostgreSQL, unless the address says otherwise."""

_CANCEL_INTERVAL = 0.1
"""Seconds between two attempts to end a call whose caller has left."""

_ROWS_OF_A_STATEMENT = 16
"""Rows at most that one INSERT stores.

For each number of rows there is another statement, and the driver of SQLite keeps the last 128 of
each connection prepared: with batches of any size it held 0.5 MB for each."""

_UPGRADE_WAIT = 3600
"""Seconds that a program waits for another one that upgrades an SQLite file."""

_PING = text("SELECT number FROM results LIMIT 1")

_T = TypeVar("_T")


class Caller:
    """Who waits for calls to the database, and may leave meanwhile: that ends them.

    Calls of a context in which `CALLER` is set to it are its own.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[_Call] = set()
        self._left = False

    def leave(self) -> None:
        """End the call that runs in the database, and refuse the next ones."""
        with self._lock:
            self._left = True
            running = list(self._running)
        for call in running:
            call.cancel()

    @contextlib.contextmanager
    def waits_for(self, call: "_Call") -> Iterator[None]:
        """Count a call as its own for as long as the context lasts.

        Raises StreamerError(CANCELLED) once the caller has left.
        """
        with self._lock:
            if self._left:
                raise call_cancelled()
            self._running.add(call)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(call)


CALLER: ContextVar[Caller | None] = ContextVar("caller of the database", default=None)


class Database:
    """The database of an installation: an SQLite file (its folder is created) or PostgreSQL.

    An empty database gets its tables. One of an older release is upgraded if `upgrade` is set, as
    the recorder does; other programs refuse it until then. Every method raises
    StreamerError(DATABASE_UNAVAILABLE) if the database does not respond.

    Args:
        url: the address of the database.
        time_limit: seconds after which a call is ended; the server may be frozen.
        upgrade: whether this program may change the tables of an older release.
    """

    def __init__(
        self, url: str, *, time_limit: float = MAX_CALL_SECONDS, upgrade: bool = False
    ) -> None:
        self.engine = engine_of(url)
        self._time_limit = time_limit
        self._running: set[_Call] = set()
        with translated():
            self._prepare(upgrade)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self.engine.dialect.name

    # Programs that start together may create the same file. A server that does not answer is not
    # asked again: that takes long.
    @retry(
        retry=retry_if_exception_type(DBAPIError),
        stop=stop_after_attempt(4) | stop_after_delay(2),
        wait=wait_random(0.05, 0.3),
        reraise=True,
    )
    def _prepare(self, upgrade: bool) -> None:
        found = self._run_once(schema.tables_version)
        if found == schema.HEAD:
            return
        if found is not None and not upgrade:
            raise StreamerError(
                ErrorCode.DATABASE_UNAVAILABLE,
                "The timeline's database is of an older release; the recorder upgrades it when it "
                "starts: run `streamer up` or `streamer record`, and try again.",
            )
        with self.engine.connect() as connection:
            if self.dialect == "sqlite":
                driver: Any = connection.connection.driver_connection
                connection.detach()  # it is closed afterwards, with its time-out
                driver.execute(f"PRAGMA busy_timeout={_UPGRADE_WAIT * 1000}")
            with connection.execution_options(writes=True).begin():
                schema.upgrade_tables(connection)

    def read(self, call: Callable[[Connection], _T], time_limit: float | None = None) -> _T:
        """Return `call(connection)`, run in a transaction that only reads.

        `time_limit` replaces that of the database. `call` may run twice: see :meth:`write`.
        """
        return self._run(call, time_limit)

    def write(self, call: Callable[[Connection], _T]) -> _T:
        """Return `call(connection)`, run in a transaction that stores all or nothing.

        On SQLite no other program writes meanwhile. `call` runs a second time if the server was
        restarted since the last call, so it must find what it has written already.
        """
        return self._run(call, writes=True)

    def close(self) -> None:
        """End the calls that run, and close the connections to the database."""
        for running in list(self._running):
            running.end()
        self.engine.dispose()

    def ping(self) -> None:
        """Read from the database: see the errors of the class."""
        limit = min(MAX_PING_SECONDS, self._time_limit)
        self.read(lambda connection: connection.execute(_PING), limit)

    def _run(
        self,
        call: Callable[[Connection], _T],
        time_limit: float | None = None,
        *,
        writes: bool = False,
    ) -> _T:
        with translated():
            try:
                return self._run_once(call, time_limit, writes=writes)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            # the server was restarted since the last call
            return self._run_once(call, time_limit, writes=writes)

    def _run_once(
        self,
        call: Callable[[Connection], _T],
        time_limit: float | None = None,
        *,
        writes: bool = False,
    ) -> _T:
        limit = self._time_limit if time_limit is None else time_limit
        with self.engine.connect().execution_options(writes=writes) as connection:
            driver = connection.connection.driver_connection
            running = _Call(driver, self.dialect, limit)
            caller = CALLER.get()
            waiting = contextlib.nullcontext() if caller is None else caller.waits_for(running)
            self._running.add(running)
            try:
                with waiting, running, connection.begin():
                    return call(connection)
            except DBAPIError:
                if running.cancelled:
                    raise call_cancelled() from None
                if not running.ended_early:
                    raise
                raise StreamerError(
                    ErrorCode.DATABASE_UNAVAILABLE,
                    f"The timeline's database did not answer within {limit:g} s: check "
                    "the database server.",
                ) from None
            finally:
                self._running.discard(running)
                if running.cancelled:  # the server may yet end what runs on this connection
                    connection.invalidate()


def call_cancelled() -> StreamerError:
    """Return the error of a call whose caller has left."""
    return StreamerError(
        ErrorCode.CANCELLED, "The search was ended: its client has closed the connection."
    )


class _Call:
    """A call to the database, which ends with an error after `time_limit` seconds.

    No driver limits how long it waits for a server that is frozen, so its connection is cut.
    """

    def __init__(self, driver: Any, dialect: str, time_limit: float) -> None:
        self._driver = driver
        self._dialect = dialect
        self._timer = threading.Timer(time_limit, self.end)
        self._timer.daemon = True
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.ended_early = False
        self.cancelled = False

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:  # from now on the connection may belong to another call
            self._over.set()

    def cancel(self) -> None:
        """Have the database end the call, and wait until it is over; its caller has left.

        It is asked again and again, because it ends a statement and not what comes between two.
        """
        while not self._over.wait(_CANCEL_INTERVAL if self.cancelled else 0):
            with self._lock:
                if self._over.is_set() or self.ended_early:
                    return
                self.cancelled = True
                if self._dialect == "sqlite":
                    self._driver.interrupt()
                    continue
                with contextlib.suppress(Exception):  # the server is gone; the time limit remains
                    self._driver.cancel_safe(timeout=MAX_PING_SECONDS)

    def end(self) -> None:
        """End the call, unless it is over."""
        with self._lock:
            if self._over.is_set() or self.ended_early:
                return
            self.ended_early = True
            if self._dialect == "sqlite":
                self._driver.interrupt()
                return
            with (
                contextlib.suppress(Exception),  # it is closed already
                socket.socket(fileno=os.dup(self._driver.fileno())) as connection,
            ):
                connection.shutdown(socket.SHUT_RDWR)


def parsed_url(url: str) -> URL:
    """Parse the address of a database; raise StreamerError for a text that is none."""
    try:
        return make_url(url)
    except ArgumentError:
        raise _not_a_database() from None


def _not_a_database() -> StreamerError:
    return StreamerError(
        ErrorCode.DATABASE_UNAVAILABLE,
        "STREAMER_DATABASE_URL is not a database URL: write sqlite:///results.db or "
        "postgresql+psycopg://user@host/database.",
    )


def engine_of(url: str) -> Engine:
    """Return an engine for the database at `url`.

    Raises StreamerError(DATABASE_UNAVAILABLE) for an address that cannot be used.
    """
    parsed = parsed_url(url)
    try:
        if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {}
        if parsed.get_backend_name() == "postgresql":
            if "connect_timeout" not in parsed.query:
                options["connect_timeout"] = _CONNECT_TIMEOUT
            if parsed.get_driver_name() == "psycopg":
                # The server plans a prepared statement once, for whatever values it may get. For a
                # rare word within an hour it then reads the hour instead of its index of words.
                options["prepare_threshold"] = None
        engine = create_engine(
            parsed,
            connect_args=options,
            json_serializer=_compact_json,
            insertmanyvalues_page_size=_ROWS_OF_A_STATEMENT,
        )
    except (ArgumentError, NoSuchModuleError):
        raise _not_a_database() from None
    except ModuleNotFoundError as error:
        raise StreamerError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"The database driver '{error.name}' is missing: install nvila-streamer[postgres].",
        ) from None
    except OSError as error:
        raise StreamerError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"The folder of the timeline cannot be created ({error.strerror}): "
            "check STREAMER_DATA_DIR.",
        ) from None
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise StreamerError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"The timeline does not support {engine.dialect.name}: use SQLite or PostgreSQL.",
        )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _tune_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


def _compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _tune_sqlite(connection: Any, _record: Any) -> None:
    # With a write-ahead log, readers never wait for the recorder.
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}").close()
    connection.isolation_level = None  # the driver begins no transactions: see _begin_sqlite


def _begin_sqlite(connection: Connection) -> None:
    # The driver would begin a transaction too late for DDL and reads. A writer takes the lock at
    # once: one that asks for it after it has read is refused without waiting.
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raise errors of SQLAlchemy as StreamerError(DATABASE_UNAVAILABLE), without passwords."""
    try:
        yield
    except SQLAlchemyError as error:
        from streamer.media.urls import redact

        reason = str(error.orig) if isinstance(error, DBAPIError) else str(error)
        first_line = redact(reason).strip().split("\n", 1)[0].rstrip(".")
        raise StreamerError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"The timeline's database failed ({first_line}): check STREAMER_DATABASE_URL, "
            "the database server and its free disk space.",
        ) from error
