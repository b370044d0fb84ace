"""Record all results, and search them."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    column,
    func,
    inspect,
    literal_column,
    or_,
    select,
    table,
    tuple_,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DataError, IntegrityError

from streamer.cursors import decode_cursor, encode_cursor, moment_of, time_order
from streamer.domain.kinds import ResultKind
from streamer.domain.result import Match, Result
from streamer.errors import ErrorCode, StreamerError
from streamer.timeline.database import (
    MAX_CALL_SECONDS,
    Database,
    engine_of,
    parsed_url,
    translated,
)
from streamer.timeline.packing import pack_plan, pack_times, unpack_plan, unpack_times
from streamer.timeline.tables import MAX_ADVANCE, MAX_DELAY, RESULT_FIELDS
from streamer.timeline.tables import results as _results
from streamer.timeline.words import Term, fts5, parse_search, tsquery

if TYPE_CHECKING:
    from streamer.timeline.vectors import VectorIndex

Also = Callable[[Connection, list[Result]], object]
"""What else is done with new results, in the transaction that stores them."""

_MAX_PAGE = 1000
"""Results of one page."""

_DISORDER = 5_000
"""Results by which the order of recording may differ from that of `created_at`: results that a
recorder took and did not record are taken over by another."""

_REQUIRED = {name for name, field in Result.model_fields.items() if field.is_required()}

_RECENT = 10_000
"""Results among which a word that is not rare is found often enough for a page."""

_RECENT_OF_STREAM = 2_000
"""The same, of one stream: its results are not side by side."""

_columns = _results.c
_words = table("results_words", column("results_words"), column("rowid"))
"""The index of words in SQLite."""


@dataclass(frozen=True)
class Page:
    """Results, newest first, and the cursor of the next page (None on the last page).

    Found by meaning, the nearest is the first, and `matches` says how near each is.
    """

    results: list[Result]
    next_cursor: str | None
    matches: list[Match] | None = None


@dataclass(frozen=True)
class _Wanted:
    """What :meth:`Timeline.query` asks for, as statements that use the indices."""

    stream: str | None
    kind: str | None
    since: datetime | None
    until: datetime | None
    terms: list[Term]
    literal: str | None
    after: tuple[datetime, int] | None
    limit: int
    dialect: str

    def rows(self, connection: Connection) -> list[Row[Any]]:
        """Return up to `limit` rows in order."""
        by_id = self.stream is not None and self._is_id(connection)
        ranged = self.since is not None or self.until is not None
        near = self._near() if ranged else []
        if self.terms:
            numbers = self._with_words(connection, by_id, near)
            statement = select(_results).where(_columns.number.in_(numbers))
            found = list(connection.execute(statement)) if numbers else []
        else:
            statement = select(_results).where(*self._filters(by_id), *near).limit(self.limit)
            found = list(connection.execute(statement.order_by(*self._order())))
            if ranged:
                found += connection.execute(self._far(by_id))
        return sorted(found, key=self._key, reverse=True)[: self.limit]

    def _key(self, row: Row[Any]) -> tuple[Any, ...]:
        number = row._mapping["number"]
        return (number,) if self.terms else (row._mapping["created_at"], number)

    def _order(self, *, indexed: bool = True) -> list[ColumnElement[Any]]:
        columns: list[ColumnElement[Any]] = [_columns.created_at, _columns.number]
        if self.terms:
            columns = columns[1:]
        return [(c if indexed else func.coalesce(c, c)).desc() for c in columns]

    def _is_id(self, connection: Connection) -> bool:
        known = select(_columns.number).where(_columns.stream_id == self.stream).limit(1)
        return connection.execute(known).first() is not None

    def _filters(self, by_id: bool, *, indexed: bool = True) -> list[ColumnElement[bool]]:
        filters: list[ColumnElement[bool]] = []
        stream = _columns.stream_id if by_id else _columns.stream_name
        for name, value in ((stream, self.stream), (_columns.kind, self.kind)):
            if value is not None:
                # a database takes no index for an expression that it does not know
                filters.append((name if indexed else func.coalesce(name, "")) == value)
        if self.kind is None:  # what summaries are made of is asked for by name
            filters.append(_columns.kind != ResultKind.SUMMARY.value)
        if self.literal and not self.terms:
            columns = (_columns.text, _columns.prompt)
            filters.append(or_(*(c.icontains(self.literal, autoescape=True) for c in columns)))
        if self.after is not None:
            created_at, number = self.after
            filters.append(
                _columns.number < number
                if self.terms
                else tuple_(_columns.created_at, _columns.number) < tuple_(created_at, number)
            )
        return filters

    def _near(self) -> list[ColumnElement[bool]]:
        """Return the conditions of the range for results that are close to their clip."""
        near: list[ColumnElement[bool]] = [_columns.far.is_(False)]
        made = _columns.created_at
        if self.since is not None:
            near.append(made >= self.since - MAX_ADVANCE)
            near.append(func.coalesce(_columns.end, made) >= self.since)
        if self.until is not None:
            near.append(made < self.until + MAX_DELAY)
            near.append(func.coalesce(_columns.start, made) < self.until)
        return near

    def numbers(self, connection: Connection) -> tuple[int | None, int | None]:
        """Return the lowest and the highest number of the results of a range that are close to
        their clip, None for none, as a search reads by number. The lowest is above the highest if
        there are none."""
        made, number, near = _columns.created_at, _columns.number, _columns.far.is_(False)
        ends: list[ColumnElement[Any]] = []
        if self.since is not None:
            first = select(number).where(
                made >= self.since - MAX_ADVANCE,
                func.coalesce(_columns.end, made) >= self.since,
                near,
            )
            edge = first.order_by(made, number).limit(_DISORDER).subquery().c.number
            ends.append(select(func.min(edge)).scalar_subquery())
        if self.until is not None:
            last = select(number).where(
                made < self.until + MAX_DELAY,
                func.coalesce(_columns.start, made) < self.until,
                near,
            )
            last = last.order_by(made.desc(), number.desc())
            edge = last.limit(_DISORDER).subquery().c.number
            ends.append(select(func.max(edge)).scalar_subquery())
        if not ends:
            return None, None
        found = list(connection.execute(select(*ends)).one())
        if None in found:
            return 1, 0
        return found[0] if self.since is not None else None, (
            found[-1] if self.until is not None else None
        )

    def _far(self, by_id: bool) -> Select[Any]:
        """Return a statement for the results of the range that are far from their clip.

        They are few, and found by the end of the clip; no other index would find them as fast.
        """
        filters = [*self._far_range(), *self._filters(by_id, indexed=False)]
        numbers = select(_columns.number).where(*filters).order_by(*self._order(indexed=False))
        return select(_results).where(_columns.number.in_(numbers.limit(self.limit)))

    def _with_words(
        self, connection: Connection, by_id: bool, near: list[ColumnElement[bool]]
    ) -> list[int]:
        """Return the numbers of the newest results that have the words."""
        lowest, highest = self.numbers(connection)
        if self.dialect == "sqlite":
            search = self._search_sqlite(by_id, near, *_between(_words.c.rowid, lowest, highest))
            found = _numbers(connection, search.limit(self.limit))
        else:
            filters = [*self._filters(by_id), *near, *_between(_columns.number, lowest, highest)]
            found = self._search_postgresql(connection, filters, lowest, highest)
        if near:
            full = len(found) == self.limit
            found += self._far_with_words(connection, by_id, found[-1] if full else 0)
        return sorted(found, reverse=True)[: self.limit]

    def _far_with_words(self, connection: Connection, by_id: bool, after: int) -> list[int]:
        """Return the same of the results of the range that are far from their clip, and whose
        number is above `after`.

        A word may be in most results, and few of them be of the range: so these are looked at one
        by one, the newest first, unless it takes too many to fill a page.
        """
        number = _columns.number
        filters = [*self._far_range(), *self._filters(by_id, indexed=False), number > after]
        newest = func.coalesce(number, number).desc()
        for some in (2 * self.limit, 20 * self.limit):
            among = _numbers(
                connection, select(number).where(*filters).order_by(newest).limit(some)
            )
            found = self._having_words(connection, among)
            if len(among) < some or len(found) == self.limit:
                return found
        if self.dialect == "sqlite":
            search = self._search_sqlite(by_id, self._far_range(), _words.c.rowid > after, far=True)
        else:
            search = select(number).where(*filters, self._has_words()).order_by(newest)
        return _numbers(connection, search.limit(self.limit))

    def _having_words(self, connection: Connection, numbers: list[int]) -> list[int]:
        """Return those of some results, all far from their clip, that have the words, the newest
        first."""
        if not numbers:
            return []
        if self.dialect == "sqlite":
            number = _words.c.rowid
            # the sum keeps SQLite from asking FTS5 once for each number
            search = select(number).where(
                _words.c.results_words.match(f"{self._fts5()} AND far : 1"),
                *_between(number, min(numbers), max(numbers)),
                (number + 0).in_(numbers),
            )
            search = search.order_by(number.desc())
        else:
            number = _columns.number
            search = select(number).where(number.in_(numbers), self._has_words())
            search = search.order_by(func.coalesce(number, number).desc())
        return _numbers(connection, search.limit(self.limit))

    def _search_postgresql(
        self,
        connection: Connection,
        filters: list[ColumnElement[bool]],
        lowest: int | None,
        highest: int | None,
    ) -> list[int]:
        """Return the numbers of the newest matches.

        PostgreSQL guesses badly whether to read by number or its index of words. So the newest
        results are read by number first: a word that is not rare is found often enough there.
        """
        number = _columns.number
        # with its limit, PostgreSQL computes it as it stands: the newest first
        newest = select(number, self._has_words().label("found")).where(*filters)
        newest = newest.order_by(number.desc())
        ends = [end for end in (highest, self.after[1] if self.after else None) if end is not None]
        if not ends and self.stream is None:
            ends = [connection.execute(select(func.max(number))).scalar() or 0]
        all_of_it = bool(ends) and min(ends) - (lowest or 0) < _RECENT
        if self.stream is not None and not all_of_it:
            newest = newest.limit(_RECENT_OF_STREAM)
        else:
            newest = newest.where(number > min(ends) - _RECENT).limit(_RECENT)
        recent = newest.subquery()
        matches = select(recent.c.number).where(recent.c.found).limit(self.limit)
        found = _numbers(connection, matches)
        if all_of_it or len(found) == self.limit:
            return found
        search = select(number).where(*filters, self._has_words())
        search = search.order_by(*self._order(indexed=False))  # not by number
        return _numbers(connection, search.limit(self.limit))

    def _far_range(self) -> list[ColumnElement[bool]]:
        since = self.since or datetime.min.replace(tzinfo=UTC)
        far = [_columns.far.is_(True), _columns.end >= since]
        return far if self.until is None else [*far, _columns.start < self.until]

    def _has_words(self) -> ColumnElement[bool]:
        """Return the condition that a row of PostgreSQL has the words."""
        words: ColumnElement[Any] = literal_column("results.words")
        return words.bool_op("@@")(func.to_tsquery("simple", tsquery(self.terms)))

    def _fts5(self) -> str:
        return f"{{text prompt}} : ({fts5(self.terms)})"

    def _search_sqlite(
        self,
        by_id: bool,
        in_range: list[ColumnElement[bool]],
        *numbers: ColumnElement[bool],
        far: bool = False,
    ) -> Select[Any]:
        """Return a statement for the numbers of matches, in FTS5's own order, which is by number.

        Names and kinds are words there too, so that a filter needs no look at each match.
        """
        query = self._fts5()
        column = "stream_id" if by_id else "stream_name"
        for name, value in ((column, self.stream), ("kind", self.kind)):
            terms = parse_search(f'"{value}"') if value is not None else []
            if terms:
                query += f" AND {name} : ({fts5(terms)})"
        if far:
            query += " AND far : 1"
        matched = _words.c.results_words.match(query)
        if self.after is not None:
            numbers = (*numbers, _words.c.rowid < self.after[1])
        return (
            select(_words.c.rowid)
            .select_from(_words.join(_results, _words.c.rowid == _columns.number))
            .where(matched, *self._filters(by_id), *in_range, *numbers)
            .order_by(_words.c.rowid.desc())
        )


def _numbers(connection: Connection, statement: Select[Any]) -> list[int]:
    return list(connection.execute(statement).scalars())


def _between(
    number: ColumnElement[int], lowest: int | None, highest: int | None
) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if lowest is not None:
        conditions.append(number >= lowest)
    if highest is not None:
        conditions.append(number <= highest)
    return conditions


class Timeline:
    """The results in a database, with the arguments and errors of :class:`Database`.

    Attributes:
        database: what else is kept there.
    """

    def __init__(
        self, url: str, *, time_limit: float = MAX_CALL_SECONDS, upgrade: bool = False
    ) -> None:
        self.database = Database(url, time_limit=time_limit, upgrade=upgrade)
        self._index: VectorIndex | None = None
        self._opening = threading.Lock()

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
        """Return one page of results, newest first; found by `q`, in the order of recording.

        Args:
            stream: id or name of a stream.
            kind: kind of result.
            since, until: select results whose clip overlaps `[since, until)`.
            q: words that the answer or the prompt contains: see :mod:`streamer.timeline.words`.
            limit: number of results, 1 to 1000.
            cursor: `next_cursor` of the previous page.

        Raises StreamerError(INVALID_REQUEST) for an invalid cursor.
        """
        limit = max(1, min(limit, _MAX_PAGE))
        wanted = _Wanted(
            stream=stream,
            kind=kind,
            since=since,
            until=until,
            terms=parse_search(q or ""),
            literal=q or None,
            after=_position(cursor) if cursor is not None else None,
            limit=limit + 1,
            dialect=self.database.dialect,
        )
        rows = self.database.read(wanted.rows)
        more = len(rows) > limit
        rows = rows[:limit]
        return Page([_result(row) for row in rows], _cursor(rows[-1]) if more else None)

    def query_by_meaning(
        self,
        q: str,
        *,
        stream: str | None = None,
        kind: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
    ) -> Page:
        """Return the results whose meaning is nearest to that of `q`, the nearest first.

        The other arguments are those of :meth:`query`. Captions and answers are searched.

        Raises StreamerError(SEARCH_UNAVAILABLE) if the extra `search` is not installed here, or not
        where the recorder runs.
        """
        from streamer.timeline.sentences import sentence_encoder
        from streamer.timeline.vectors import VectorIndex

        vector = sentence_encoder().encode([q])[0]
        with self._opening:
            if self._index is None:
                self._index = VectorIndex(self.database)
        wanted = _Wanted(
            stream=stream,
            kind=kind,
            since=since,
            until=until,
            terms=[],
            literal=None,
            after=None,
            limit=limit,
            dialect=self.database.dialect,
        )
        found = self._index.nearest(
            vector,
            stream=stream,
            kind=kind,
            since=since,
            until=until,
            numbers=self.database.read(wanted.numbers),
            limit=max(1, min(limit, _MAX_PAGE)),
        )
        results = [_result(each.row) for each in found]
        matches = [
            Match(request_id=result.request_id, similarity=each.similarity)
            for result, each in zip(results, found, strict=True)
        ]
        return Page(results, None, matches)

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
    as_json = result.model_dump(mode="json", include={"error", "gaps"})
    row |= {
        "kind": result.kind.value,
        "error": as_json["error"],
        "gaps": as_json["gaps"] or None,
        "plan": pack_plan(result.plan) if result.plan is not None else None,
        "frame_times": pack_times(result.frame_times) or None,
        "far": _far(result),
    }
    # PostgreSQL rejects text with a NUL, and one such result would block all later ones.
    return {k: v.replace("\0", "") if isinstance(v, str) else v for k, v in row.items()}


def _far(result: Result) -> bool:
    made = result.created_at
    late = result.start is not None and result.start < made - MAX_DELAY
    return late or (result.end is not None and result.end > made + MAX_ADVANCE)


def _result(row: Row[Any]) -> Result:
    # A field that an older version did not store has its default.
    stored = row._mapping
    values = {
        name: stored[name]
        for name in RESULT_FIELDS
        if stored[name] is not None or name in _REQUIRED
    }
    if "plan" in values:
        values["plan"] = unpack_plan(values["plan"])
    if "frame_times" in values:
        values["frame_times"] = unpack_times(values["frame_times"])
    return Result.shown(values)


def _cursor(row: Row[Any]) -> str:
    return encode_cursor(time_order(row._mapping["created_at"]), str(row._mapping["number"]))


def _position(cursor: str) -> tuple[datetime, int]:
    """Return the time and the number of the last result before the page."""
    order, number = decode_cursor(cursor)
    return moment_of(order), int(number[:18]) if number.isdecimal() else 0
