"""Record all results, and search them."""

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, inspect, or_, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

from streamer.domain import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.timeline.database import TIME_LIMIT, Database, engine_of, parsed_url, translated
from streamer.timeline.tables import RESULT_FIELDS, RESULT_LISTS
from streamer.timeline.tables import results as _results

Also = Callable[[Connection, list[Result]], object]
"""What else is done with new results, in the transaction that stores them."""

_MAX_PAGE = 1000
"""Results of one page."""


@dataclass(frozen=True)
class Page:
    """Results, newest first, and the cursor of the next page (None on the last page)."""

    results: list[Result]
    next_cursor: str | None


class Timeline:
    """The results in a database, with the arguments and errors of :class:`Database`.

    Attributes:
        database: what else is kept there.
    """

    def __init__(self, url: str, *, time_limit: float = TIME_LIMIT, upgrade: bool = False) -> None:
        self.database = Database(url, time_limit=time_limit, upgrade=upgrade)

    def close(self) -> None:
        """End the calls that run, and close the connections to the database."""
        self.database.close()

    def ping(self) -> None:
        """Read from the database: see the errors of the class."""
        self.database.ping()

    def record(self, results: Sequence[Result], also: "Also | None" = None) -> int:
        """Store results, all or none, and return how many are new; known ones are not changed.

        `also` is called with those that are new, in the same transaction.

        Raises StreamerError(RECORD_UNREADABLE) if the database cannot hold one of them.
        """
        if not results:
            return 0
        rows = [_row(result) for result in results]
        insert = postgresql.insert if self.database.dialect == "postgresql" else sqlite.insert
        statement = insert(_results).on_conflict_do_nothing().returning(_results.c.id)

        def store(connection: Connection) -> int:
            new = set(connection.execute(statement, rows).scalars())
            if also is not None and new:
                also(connection, [result for result in results if result.id in new])
            return len(new)

        try:
            return self.database.write(store)
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
        rows = self.database.read(lambda connection: connection.execute(statement).all())
        more = len(rows) > limit
        rows = rows[:limit]
        return Page([_result(row) for row in rows], _cursor(rows[-1]) if more else None)

    def get(self, request_id: str) -> Result | None:
        """Return the result of a request; None if there is none."""
        statement = select(_results).where(_results.c.request_id == request_id)
        row = self.database.read(lambda connection: connection.execute(statement).first())
        return _result(row) if row is not None else None


def count_results(url: str) -> int | None:
    """Return how many results the database at `url` holds, without changing anything; None if it
    has no table yet. Raises StreamerError(DATABASE_UNAVAILABLE)."""
    parsed = parsed_url(url)
    file = parsed.database if parsed.get_backend_name() == "sqlite" else None
    if file not in (None, "", ":memory:") and not Path(str(file)).exists():
        return None
    engine = engine_of(url)
    try:
        with translated(), engine.connect() as connection:
            if not inspect(connection).has_table(_results.name):
                return None
            return int(connection.execute(select(func.count()).select_from(_results)).scalar_one())
    finally:
        engine.dispose()


def _row(result: Result) -> dict[str, Any]:
    row = result.model_dump(include=set(RESULT_FIELDS))
    as_json = result.model_dump(mode="json", include={"error", *RESULT_LISTS})
    row |= {
        "kind": result.kind.value,
        "error": as_json["error"],
        **{name: as_json[name] or None for name in RESULT_LISTS},
    }
    # PostgreSQL rejects text with a NUL, and one such result would block all later ones.
    return {k: v.replace("\0", "") if isinstance(v, str) else v for k, v in row.items()}


def _result(row: Row[Any]) -> Result:
    # A field that an older version did not store has its default.
    values = {
        name: row._mapping[name]
        for name in RESULT_FIELDS
        if Result.model_fields[name].is_required() or row._mapping[name] is not None
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
