"""The record of all results: a table that outlives Redis, searchable."""

import base64
import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
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
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.types import TypeEngine
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random

from streamer.domain import Result
from streamer.errors import ErrorCode, StreamerError

_MOST = 1000


class _UtcDateTime(TypeDecorator[datetime]):
    """Aware UTC datetimes in Python, whatever the database keeps."""

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
_TIMES = ("decode_ms", "queue_ms", "encode_ms", "generate_ms", "total_ms")
_TYPES: dict[str, TypeEngine[Any]] = {
    **dict.fromkeys(("start", "end", "created_at"), _UtcDateTime()),
    **dict.fromkeys(("data", "error", "plan"), JSON(none_as_null=True)),
    **dict.fromkeys((*_COUNTS, *_TOKENS), Integer()),
    **dict.fromkeys(_TIMES, Float()),
}
_metadata = MetaData()
_results = Table(
    "results",
    _metadata,
    # Breaks ties of time in the order of arrival, and makes the cursor exact.
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
    """Some results, newest first, and where the next page starts (None: there is none)."""

    results: list[Result]
    next_cursor: str | None


class Timeline:
    """Results in a SQL database: SQLite (the folder is made) or PostgreSQL, by URL.

    Raises StreamerError(DATABASE_UNAVAILABLE), from every method, when the database is not there.
    """

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        with _translated():
            self._make_schema()

    # The recorder and the API may both find a new database empty, and both set to work.
    @retry(
        retry=retry_if_exception_type(DBAPIError),
        stop=stop_after_attempt(4),
        wait=wait_random(0.05, 0.3),
        reraise=True,
    )
    def _make_schema(self) -> None:
        with self._engine.begin() as connection:
            _metadata.create_all(connection)
            there = {column["name"] for column in inspect(connection).get_columns(_results.name)}
            for column in _results.columns:
                if column.name not in there:  # the database is that of an older version
                    kind = column.type.compile(self._engine.dialect)
                    connection.execute(
                        text(f'ALTER TABLE {_results.name} ADD COLUMN "{column.name}" {kind}')
                    )

    def close(self) -> None:
        """Close the database's connections."""
        self._engine.dispose()

    def record(self, results: Sequence[Result]) -> int:
        """Write results down, all or none; those that are there already are left as they are.

        Returns how many were new.
        """
        if not results:
            return 0
        rows = [_row(result) for result in results]
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        with _translated(), self._engine.begin() as connection:
            statement = insert(_results).on_conflict_do_nothing().returning(_results.c.id)
            return len(connection.execute(statement, rows).all())

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
        """Results, newest first.

        `stream` is an id or a name. `since` and `until` select by what was looked at: results
        whose clip touches `[since, until)`. `q` must occur in text or prompt, in any case.
        `cursor` is a page's `next_cursor`. Raises StreamerError(INVALID_REQUEST) for a bad cursor.
        """
        columns = _results.c
        limit = max(1, min(limit, _MOST))
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
        with _translated(), self._engine.connect() as connection:
            rows = connection.execute(statement).all()
        more = len(rows) > limit
        rows = rows[:limit]
        return Page([_result(row) for row in rows], _cursor(rows[-1]) if more else None)

    def get(self, request_id: str) -> Result | None:
        """The result of a request."""
        statement = select(_results).where(_results.c.request_id == request_id)
        with _translated(), self._engine.connect() as connection:
            row = connection.execute(statement).first()
        return _result(row) if row is not None else None


def _engine(url: str) -> Engine:
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite" and parsed.database not in (None, "", ":memory:"):
            Path(str(parsed.database)).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError):
        raise StreamerError(
            ErrorCode.DATABASE_UNAVAILABLE,
            "STREAMER_DATABASE_URL is not a database address: it should look like "
            "sqlite:///results.db or postgresql+psycopg://user@host/database.",
        ) from None
    except ModuleNotFoundError as error:
        raise StreamerError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"The database driver '{error.name}' is missing: install nvila-streamer[postgres].",
        ) from None
    except OSError as error:
        raise StreamerError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"The timeline's folder cannot be made ({error.strerror}): check STREAMER_DATA_DIR.",
        ) from None
    if engine.dialect.name not in ("sqlite", "postgresql"):
        raise StreamerError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"A {engine.dialect.name} database cannot hold the timeline: use SQLite or PostgreSQL.",
        )
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _tune_sqlite)
    return engine


def _tune_sqlite(connection: Any, _record: Any) -> None:
    # With a write-ahead log readers never wait for the recorder.
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
            "its server and the free space.",
        ) from error


def _row(result: Result) -> dict[str, Any]:
    row = result.model_dump()
    row["error"] = result.error.model_dump(mode="json") if result.error is not None else None
    # PostgreSQL refuses texts that hold a NUL, and one such would hold up all that follow it.
    return {k: v.replace("\0", "") if isinstance(v, str) else v for k, v in row.items()}


def _result(row: Row[Any]) -> Result:
    values = dict(row._mapping)
    del values["number"]
    return Result.model_validate(values)


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
            ErrorCode.INVALID_REQUEST, "This cursor is none of ours: leave it out to start anew."
        ) from None
    columns = _results.c
    return statement.where(
        or_(
            columns.created_at < created_at,
            and_(columns.created_at == created_at, columns.number < number),
        )
    )
