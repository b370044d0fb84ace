"""Search results by meaning: the nearest of the vectors that `vector_store` keeps.

A search finds the nearest vectors by their signs, all of which are in memory, and ranks these by
their int8. Neither database needs an extension. `benchmarks/timeline.py` measures it.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import Connection, Row, bindparam, func, select

from streamer.errors import ErrorCode, StreamerError
from streamer.timeline.database import Database
from streamer.timeline.search_extra import INSTALL_SEARCH
from streamer.timeline.sentences import DIMENSIONS
from streamer.timeline.tables import result_vectors as _vectors
from streamer.timeline.tables import results as _results
from streamer.timeline.vector_store import MAX_VECTORS, SEARCHED

MIN_SIMILARITY = 0.2
"""Similarity below which a result has nothing to do with the question."""

_CANDIDATES = 1000
"""Results that a search finds by their signs and ranks by their int8, at least."""

_LOAD = 20_000
"""Vectors that one step reads into memory."""

_SIGNS = DIMENSIONS // 8

_columns = _results.c
_Vectors = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class Near:
    """A result that is near in meaning."""

    row: Row[Any]
    similarity: float


@dataclass(frozen=True)
class _Label:
    """What a search filters by, the same for many results."""

    stream_id: str | None
    stream_name: str | None
    kind: str
    far: bool


class VectorIndex:
    """The signs of the vectors in memory, read as they are needed; threads may share it."""

    def __init__(self, database: Database, max_vectors: int = MAX_VECTORS) -> None:
        self._database = database
        self._max_vectors = max_vectors
        self._lock = threading.Lock()
        self._labels: dict[_Label, int] = {}
        self._forget()

    def _forget(self) -> None:
        self._position = self._count = 0
        self._numbers = np.empty(0, np.int64)
        self._codes = np.empty(0, np.int32)
        self._signs = np.empty((0, _SIGNS), np.uint8)

    def nearest(
        self,
        vector: _Vectors,
        *,
        stream: str | None,
        kind: str | None,
        since: datetime | None,
        until: datetime | None,
        numbers: tuple[int | None, int | None],
        limit: int,
    ) -> list[Near]:
        """Return up to `limit` results whose meaning is nearest to a vector, the nearest first.

        Args:
            vector: what is looked for, [DIMENSIONS], of length 1.
            stream: id or name of a stream.
            kind: kind of result.
            since, until: select results whose clip overlaps `[since, until)`.
            numbers: the lowest and the highest number of results that are near the range in time.

        Raises StreamerError: SEARCH_UNAVAILABLE if no result has a vector; DATABASE_UNAVAILABLE.
        """
        for again in (True, False):
            found = self._candidates(vector, stream, kind, numbers, max(_CANDIDATES, 4 * limit))
            rated, gone = self._rate(found, vector, since, until)
            if not again or gone <= len(found) // 4:
                break
            with self._lock:
                self._forget()  # it holds many results that were deleted
        best = [each for each in rated if each[0] >= MIN_SIMILARITY][:limit]
        rows = self._rows([number for _, number in best])
        return [Near(rows[number], similarity) for similarity, number in best if number in rows]

    def _candidates(
        self,
        vector: _Vectors,
        stream: str | None,
        kind: str | None,
        numbers: tuple[int | None, int | None],
        count: int,
    ) -> list[int]:
        """Return the numbers of the results whose signs differ least from those of the vector."""
        with self._lock:
            self._read_new()
            held = slice(0, self._count)
            known, codes, signs = self._numbers[held], self._codes[held], self._signs[held]
            labels = dict(self._labels)
        if not len(known):
            self._require_vectors()
        chosen = _chosen(known, codes, labels, stream, kind, numbers)
        if chosen is not None:
            known, signs = known[chosen], signs[chosen]
        return _nearest_signs(known, signs, vector, count)

    def _read_new(self) -> None:
        """Read the vectors that were stored since the last look."""
        newest_of = select(func.max(_vectors.c.number)).scalar_subquery()
        ends = select(newest_of, select(func.max(_vectors.c.position)).scalar_subquery())
        newest, last = self._database.read(lambda connection: connection.execute(ends).one())
        if newest is None:
            self._count = 0
            return
        columns = [_columns[name] for name in ("stream_id", "stream_name", "kind", "far")]
        statement = (
            select(_vectors.c.position, _vectors.c.number, _vectors.c.signs, *columns)
            .join(_results, _columns.number == _vectors.c.number)
            .where(
                _vectors.c.position > bindparam("after"),
                _vectors.c.position <= bindparam("to"),
                _vectors.c.number > newest - self._max_vectors,
            )
            .order_by(_vectors.c.position)
        )
        while self._position < last:
            to = min(last, self._position + _LOAD)
            step = partial(_rows_of, statement, after=self._position, to=to)
            self._add(self._database.read(step))
            self._position = to
        if self._count > self._max_vectors * 5 // 4:
            kept = self._numbers[: self._count] > newest - self._max_vectors
            self._numbers = self._numbers[: self._count][kept]
            self._codes = self._codes[: self._count][kept]
            self._signs = self._signs[: self._count][kept]
            self._count = len(self._numbers)

    def _add(self, rows: Sequence[Any]) -> None:
        needed = self._count + len(rows)
        if needed > len(self._numbers):
            room = max(needed, 2 * len(self._numbers), 1024)
            # new arrays: a search may be reading the old ones
            self._numbers = _grown(self._numbers, room)
            self._codes = _grown(self._codes, room)
            self._signs = _grown(self._signs, room)
        new = slice(self._count, needed)
        self._numbers[new] = [row[1] for row in rows]
        self._codes[new] = [
            self._labels.setdefault(_Label(*row[3:]), len(self._labels)) for row in rows
        ]
        joined = b"".join(row[2] for row in rows)
        self._signs[new] = np.frombuffer(joined, np.uint8).reshape(-1, _SIGNS)
        self._count = needed

    def _require_vectors(self) -> None:
        statement = select(_columns.number).where(_columns.kind.in_(SEARCHED)).limit(1)
        if self._database.read(lambda connection: connection.execute(statement).first()):
            raise StreamerError(
                ErrorCode.SEARCH_UNAVAILABLE,
                "No result can be searched by meaning yet: wait a minute; if that does not help, "
                f"the recorder lacks the extra 'search'. {INSTALL_SEARCH}",
            )

    def _rate(
        self,
        numbers: Sequence[int],
        vector: _Vectors,
        since: datetime | None,
        until: datetime | None,
    ) -> tuple[list[tuple[float, int]], int]:
        """Return similarity and number of those results that overlap the range, the best first,
        and how many results are gone."""
        made = _columns.created_at
        statement = (
            select(
                _vectors.c.number,
                _vectors.c.vector,
                func.coalesce(_columns.start, made),
                func.coalesce(_columns.end, made),
            )
            .join(_results, _columns.number == _vectors.c.number)
            .where(_vectors.c.number.in_(numbers))
        )
        there = self._database.read(lambda connection: connection.execute(statement).all())
        rows = [
            row
            for row in there
            if (since is None or row[3] >= since) and (until is None or row[2] < until)
        ]
        gone = len(numbers) - len(there)
        if not rows:
            return [], gone
        small = np.frombuffer(b"".join(row[1] for row in rows), np.int8)
        vectors = small.reshape(-1, DIMENSIONS).astype(np.float32)
        similar = vectors @ vector / np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)
        # of those that are equally near the newest first
        rated = [(round(float(s), 3), row[0]) for s, row in zip(similar, rows, strict=True)]
        return sorted(rated, reverse=True), gone

    def _rows(self, numbers: Sequence[int]) -> dict[int, Row[Any]]:
        statement = select(_results).where(_columns.number.in_(numbers))
        found = self._database.read(lambda connection: connection.execute(statement).all())
        return {row._mapping["number"]: row for row in found}


def _chosen(
    known: Any,
    codes: Any,
    labels: Mapping[_Label, int],
    stream: str | None,
    kind: str | None,
    numbers: tuple[int | None, int | None],
) -> Any:
    """Return which of the vectors the filters select, as booleans; None: all."""
    lowest, highest = numbers
    chosen = None
    if lowest is not None or highest is not None:
        chosen = np.ones(len(known), bool)
        if lowest is not None:
            chosen &= known >= lowest
        if highest is not None:
            chosen &= known <= highest
        chosen |= np.isin(codes, [code for label, code in labels.items() if label.far])
    if stream is not None or kind is not None:
        wanted = [
            code
            for label, code in labels.items()
            if (stream is None or stream in (label.stream_id, label.stream_name))
            and (kind is None or kind == label.kind)
        ]
        named = np.isin(codes, wanted)
        chosen = named if chosen is None else chosen & named
    return chosen


def _rows_of(statement: Any, connection: Connection, **values: int) -> Sequence[Row[Any]]:
    return connection.execute(statement, values).all()


def _grown(array: Any, room: int) -> Any:
    grown = np.empty((room, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


_BLOCK = 65_536
"""Vectors that are compared at once: they fit into a processor's cache."""


def _nearest_signs(numbers: Any, signs: Any, vector: _Vectors, count: int) -> list[int]:
    """Return the numbers of the `count` vectors that share the most signs with `vector`; of those
    that share as many the newest."""
    asked = np.packbits(vector > 0).view(np.uint64)
    order = np.empty(len(numbers), np.int64)
    for first in range(0, len(numbers), _BLOCK):
        block = np.ascontiguousarray(signs[first : first + _BLOCK]).view(np.uint64)
        differing = np.bitwise_count(block ^ asked).sum(axis=1, dtype=np.int64)
        order[first : first + _BLOCK] = differing
    order = (order << 48) - numbers
    if len(order) > count:
        order = np.argpartition(order, count)[:count]
        return [int(number) for number in numbers[order]]
    return [int(number) for number in numbers]
