"""Record all results in a searchable SQL table that outlives Redis."""

import base64
import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    Row,
    Select,
    Table,
    Text,
    TypeDecorator,
    and_,
    create_engine,
    event,
    func,
    inspect,
    make_url,
    or_,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    IntegrityError,
    NoSuchModuleError,
    SQLAlchemyError,
)
from sqlalchemy.types import TypeEngine
from tenacity import (
    retry,
    retry_if_exception_type,
    stop_after_attempt,
    stop_after_delay,
    wait_random,
)

from streamer.domain import Result
from streamer.errors import ErrorCode, StreamerError

TIME_LIMIT = 10.0
"""Seconds that a call to the database may take."""

PING_LIMIT = 5.0
"""Seconds after which a database counts as one that does not answer."""

CONNECT_TIMEOUT = 5
"""Seconds to connect to PostgreSQL, unless the address says otherwise."""

_T = TypeVar("_T")

_MAX_PAGE = 1000
"""Results of one page."""


class _UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC datetimes in Python, with or without time zones in the database."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


_COUNTS = ("frames", "tiles")
_TOKENS = ("vision_tokens", "prompt_tokens", "cached_tokens", "completion_tokens")
_TIMES = ("decode_ms", "queue_ms", "encode_ms", "generate_ms", "total_ms", "newest_frame_age")
_LISTS = ("frame_times", "gaps")
_TYPES: dict[str, TypeEngine[Any]] = {
    **dict.fromkeys(("start", "end", "created_at", "frames_from", "frames_to"), _UtcDateTime()),
    **dict.fromkeys(("data", "error", "plan", *_LISTS), JSON(none_as_null=True)),
    **dict.fromkeys((*_COUNTS, *_TOKENS), Integer()),
    **dict.fromkeys(_TIMES, Float()),
    "stale": Boolean(),
}
_metadata = MetaData()
_results = Table(
    "results",
    _metadata,
    # Orders results of the same time by arrival, and makes the cursor exact.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    *(
        Column(
            name,
            _TYPES.get(name, Text()),
            nullable=name not in ("id", "request_id", "kind", "created_at", "prompt"),
            unique=name in ("id", "request_id"),
        )
        for name in Result.model_fields
    ),
    Index("results_by_time", "created_at", "number"),
    Index("results_by_stream", "stream_id", "created_at"),
)


@dataclass(frozen=True)
class Page:
    """Results, newest first, and the cursor of the next page (None on the last page)."""

    results: list[Result]
    next_cursor: str | None


class Timeline:
    """Results in an SQL database: SQLite (its folder is created) or PostgreSQL, by URL.

    Every method raises StreamerError(DATABASE_UNAVAILABLE) if the database does not respond.

    Args:
        url: the address of the database.
        time_limit: seconds after which a call is ended; the server may be frozen.
    """

    def __init__(self, url: str, *, time_limit: float = TIME_LIMIT) -> None:
        self._engine = _engine(url)
        self._time_limit = time_limit
        self._running: set[_Call] = set()
        with _translated():
            self._make_schema()

    # The recorder and the API may create the schema of a new database at the same time. A server
    # that does not answer is not asked again: that takes long.
    @retry(
        retry=retry_if_exception_type(DBAPIError),
        stop=stop_after_attempt(4) | stop_after_delay(2),
        wait=wait_random(0.05, 0.3),
        reraise=True,
    )
    def _make_schema(self) -> None:
        self._run_once(self._create_tables)

    def _create_tables(self, connection: Connection) -> None:
        _metadata.create_all(connection)
        existing = {column["name"] for column in inspect(connection).get_columns(_results.name)}
        for column in _results.columns:
            if column.name not in existing:  # created by an older version
                kind = column.type.compile(self._engine.dialect)
                connection.execute(
                    text(f'ALTER TABLE {_results.name} ADD COLUMN "{column.name}" {kind}')
                )

    def _run(self, call: Callable[[Connection], _T], time_limit: float | None = None) -> _T:
        """Return `call(connection)`, run in a transaction within the time limit."""
        with _translated():
            try:
                return self._run_once(call, time_limit)
            except DBAPIError as error:
                if not error.connection_invalidated:
                    raise
            return self._run_once(call, time_limit)  # the server was restarted since the last call

    def _run_once(self, call: Callable[[Connection], _T], time_limit: float | None = None) -> _T:
        limit = self._time_limit if time_limit is None else time_limit
        with self._engine.connect() as connection:
            driver = connection.connection.driver_connection
            running = _Call(driver, self._engine.dialect.name, limit)
            self._running.add(running)
            try:
                with running, connection.begin():
                    return call(connection)
            except DBAPIError:
                if not running.ended_early:
                    raise
                raise StreamerError(
                    ErrorCode.DATABASE_UNAVAILABLE,
                    f"The timeline's database did not answer within {limit:g} s: check "
                    "the database server.",
                ) from None
            finally:
                self._running.discard(running)

    def close(self) -> None:
        """End the calls that run, and close the connections to the database."""
        for running in list(self._running):
            running.end()
        self._engine.dispose()

    def ping(self) -> None:
        """Read from the database: see the errors of the class."""
        statement = select(_results.c.number).limit(1)
        limit = min(PING_LIMIT, self._time_limit)
        self._run(lambda connection: connection.execute(statement), limit)

    def record(self, results: Sequence[Result]) -> int:
        """Store results, all or none, and return how many are new; known ones are not changed.

        Raises StreamerError(RECORD_UNREADABLE) if the database cannot hold one of them.
        """
        if not results:
            return 0
        rows = [_row(result) for result in results]
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        statement = insert(_results).on_conflict_do_nothing().returning(_results.c.id)
        try:
            return self._run(lambda connection: len(connection.execute(statement, rows).all()))
        except StreamerError as error:
            if not isinstance(error.__cause__, DataError | IntegrityError):
                raise
            raise StreamerError(
                ErrorCode.RECORD_UNREADABLE,
                f"{error.message} If a newer release made the result, upgrade the recorder.",
            ) from error

    def query(
        self,
        stream: str | None = None,
        kind: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        q: str | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page:
        """Return one page of results, newest first.

        Args:
            stream: id or name of a stream.
            kind: kind of result.
            since, until: select results whose clip overlaps `[since, until)`.
            q: text that the answer or the prompt contains, ignoring case.
            limit: number of results, 1 to 1000.
            cursor: `next_cursor` of the previous page.

        Raises StreamerError(INVALID_REQUEST) for an invalid cursor.
        """
        columns = _results.c
        limit = max(1, min(limit, _MAX_PAGE))
        statement = (
            select(_results)
            .order_by(columns.created_at.desc(), columns.number.desc())
            .limit(limit + 1)
        )
        if stream is not None:
            statement = statement.where(
                or_(columns.stream_id == stream, columns.stream_name == stream)
            )
        if kind is not None:
            statement = statement.where(columns.kind == kind)
        if since is not None:
            statement = statement.where(func.coalesce(columns.end, columns.created_at) >= since)
        if until is not None:
            statement = statement.where(func.coalesce(columns.start, columns.created_at) < until)
        if q:
            statement = statement.where(
                or_(
                    columns.text.icontains(q, autoescape=True),
                    columns.prompt.icontains(q, autoescape=True),
                )
            )
        if cursor is not None:
            statement = _after(statement, cursor)
        rows = self._run(lambda connection: connection.execute(statement).all())
        more = len(rows) > limit
        rows = rows[:limit]
        return Page([_result(row) for row in rows], _cursor(rows[-1]) if more else None)

    def get(self, request_id: str) -> Result | None:
        """Return the result of a request; None if there is none."""
        statement = select(_results).where(_results.c.request_id == request_id)
        row = self._run(lambda connection: connection.execute(statement).first())
        return _result(row) if row is not None else None


def count_results(url: str) -> int | None:
    """Return how many results the database at `url` holds, without changing anything; None if it
    has no table yet. Raises StreamerError(DATABASE_UNAVAILABLE)."""
    parsed = _parsed(url)
    file = parsed.database if parsed.get_backend_name() == "sqlite" else None
    if file not in (None, "", ":memory:") and not Path(str(file)).exists():
        return None
    engine = _engine(url)
    try:
        with _translated(), engine.connect() as connection:
            if not inspect(connection).has_table(_results.name):
                return None
            return int(connection.execute(select(func.count()).select_from(_results)).scalar_one())
    finally:
        engine.dispose()


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
        self._over = False
        self.ended_early = False

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:  # from now on the connection may belong to another call
            self._over = True

    def end(self) -> None:
        """End the call, unless it is over."""
        with self._lock:
            if self._over or self.ended_early:
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


def _parsed(url: str) -> URL:
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


def _engine(url: str) -> Engine:
    parsed = _parsed(url)
    try:
        if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        given = "connect_timeout" in parsed.query or parsed.get_backend_name() != "postgresql"
        limits = {} if given else {"connect_timeout": CONNECT_TIMEOUT}
        engine = create_engine(parsed, connect_args=limits)
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
    return engine


def _tune_sqlite(connection: Any, _record: Any) -> None:
    # With a write-ahead log, readers never wait for the recorder.
    for pragma in ("busy_timeout=10000", "journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}").close()


@contextlib.contextmanager
def _translated() -> Iterator[None]:
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


def _row(result: Result) -> dict[str, Any]:
    row = result.model_dump()
    as_json = result.model_dump(mode="json", include={"error", *_LISTS})
    row |= {
        "kind": result.kind.value,
        "error": as_json["error"],
        **{name: as_json[name] or None for name in _LISTS},
    }
    # PostgreSQL rejects text with a NUL, and one such result would block all later ones.
    return {k: v.replace("\0", "") if isinstance(v, str) else v for k, v in row.items()}


def _result(row: Row[Any]) -> Result:
    # A field that an older version did not store has its default.
    values = {
        name: row._mapping[name]
        for name, field in Result.model_fields.items()
        if field.is_required() or row._mapping[name] is not None
    }
    return Result.shown(values)


def _cursor(row: Row[Any]) -> str:
    position = json.dumps([row._mapping["created_at"].isoformat(), row._mapping["number"]])
    return base64.urlsafe_b64encode(position.encode()).decode().rstrip("=")


def _after(statement: Select[Any], cursor: str) -> Select[Any]:
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        moment, number = json.loads(raw)
        created_at, number = datetime.fromisoformat(moment), int(number)
    except (ValueError, TypeError):
        raise StreamerError(
            ErrorCode.INVALID_REQUEST,
            "Invalid cursor: omit it to start from the newest result.",
        ) from None
    columns = _results.c
    return statement.where(
        or_(
            columns.created_at < created_at,
            and_(columns.created_at == created_at, columns.number < number),
        )
    )
