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
from sqlalchemy import BindParameter, Connection, Row, bindparam, func, select

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

_WORDS = DIMENSIONS // 64
"""Words of 64 bits that hold the signs of a vector."""

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
        self._signs = np.empty((_WORDS, 0), np.uint64)  # of each vector a column

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
            rated = self._rate(found, vector)
            if not again or len(found) - len(rated) <= len(found) // 4:
                break
            with self._lock:
                self._forget()  # it holds many results that were deleted
        best = [each for each in rated if each[0] >= MIN_SIMILARITY]
        near: list[Near] = []
        ranged = since is not None or until is not None
        # an eighth more, because a few are not of the range: mostly it is read once
        read, step = 0, limit + ranged * (limit // 8 + 1)
        while read < len(best) and len(near) < limit:
            some = best[read : read + step]
            rows = self._rows([number for _, number in some], since, until)
            near += [Near(rows[number], alike) for alike, number in some if number in rows]
            read += step
            step = max(2 * (limit - len(near)), read // 2)
        return near[:limit]

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
            known, codes, signs = self._numbers[held], self._codes[held], self._signs[:, held]
            labels = dict(self._labels)
        if not len(known):
            self._require_vectors()
        chosen = _chosen(known, codes, labels, stream, kind, numbers)
        if chosen is not None:
            known, signs = known[chosen], signs[:, chosen]
        return _nearest_signs(known, signs, vector, count)

    def _read_new(self) -> None:
        """Read the vectors that were stored since the last look."""
        newest_of = select(func.max(_vectors.c.number)).scalar_subquery()
        ends = select(newest_of, select(func.max(_vectors.c.position)).scalar_subquery())
        newest, last = self._database.read(lambda connection: connection.execute(ends).one())
        if newest is None:
            self._count = 0
            return
        if self._position >= last:
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
            self._signs = self._signs[:, : self._count][:, kept]
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
        self._signs[:, new] = np.frombuffer(joined, np.uint64).reshape(-1, _WORDS).T
        self._count = needed

    def _require_vectors(self) -> None:
        statement = select(_columns.number).where(_columns.kind.in_(SEARCHED)).limit(1)
        if self._database.read(lambda connection: connection.execute(statement).first()):
            raise StreamerError(
                ErrorCode.SEARCH_UNAVAILABLE,
                "No result can be searched by meaning yet: wait a minute; if that does not help, "
                f"the recorder lacks the extra 'search'. {INSTALL_SEARCH}",
            )

    def _rate(self, numbers: Sequence[int], vector: _Vectors) -> list[tuple[float, int]]:
        """Return similarity and number of those results that still have a vector, the best
        first."""
        statement = select(_vectors.c.number, _vectors.c.vector).where(
            _vectors.c.number.in_(_inline(numbers))
        )
        rows = self._database.read(lambda connection: connection.execute(statement).all())
        if not rows:
            return []
        small = np.frombuffer(b"".join(row[1] for row in rows), np.int8)
        vectors = small.reshape(-1, DIMENSIONS).astype(np.float32)
        similar = vectors @ vector / np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)
        # of those that are equally near the newest first
        rated = [(round(float(s), 3), row[0]) for s, row in zip(similar, rows, strict=True)]
        return sorted(rated, reverse=True)

    def _rows(
        self, numbers: Sequence[int], since: datetime | None, until: datetime | None
    ) -> dict[int, Row[Any]]:
        """Return, by number, those of the results that overlap the range."""
        made = _columns.created_at
        statement = select(_results).where(_columns.number.in_(_inline(numbers)))
        if since is not None:
            statement = statement.where(func.coalesce(_columns.end, made) >= since)
        if until is not None:
            statement = statement.where(func.coalesce(_columns.start, made) < until)
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
    """Return the places of the vectors that the filters select; None: all."""
    lowest, highest = numbers
    chosen = None
    if lowest is not None or highest is not None:
        far = np.fromiter((label.far for label in labels), bool, len(labels))
        chosen = far.take(codes)
        near = ~chosen
        if lowest is not None:
            near &= known >= lowest
        if highest is not None:
            near &= known <= highest
        chosen |= near
    if stream is not None or kind is not None:
        wanted = (
            (stream is None or stream in (label.stream_id, label.stream_name))
            and (kind is None or kind == label.kind)
            for label in labels
        )
        named = np.fromiter(wanted, bool, len(labels)).take(codes)
        chosen = named if chosen is None else chosen & named
    return None if chosen is None else np.flatnonzero(chosen)


def _rows_of(statement: Any, connection: Connection, **values: int) -> Sequence[Row[Any]]:
    return connection.execute(statement, values).all()


def _inline(numbers: Sequence[int]) -> BindParameter[Sequence[int]]:
    """Return numbers as a part of the statement: a thousand parameters take longer to pass than
    all else."""
    return bindparam("numbers", numbers, expanding=True, literal_execute=True)


def _grown(array: Any, room: int) -> Any:
    """Return an array whose last axis has `room` places, the first of them those of `array`."""
    grown = np.empty((*array.shape[:-1], room), array.dtype)
    grown[..., : array.shape[-1]] = array
    return grown


_BLOCK = 32_768
"""Vectors that are compared at once: they fit into a processor's cache."""


def _nearest_signs(numbers: Any, signs: Any, vector: _Vectors, count: int) -> list[int]:
    """Return the numbers of the `count` vectors that share the most signs with `vector`; of those
    that share as many the newest."""
    if len(numbers) > count:
        differing = _differing(signs, vector)
        within = np.cumsum(np.bincount(differing))  # vectors, by how many signs differ at most
        near = np.flatnonzero(differing <= np.searchsorted(within, count))
        order = (differing[near].astype(np.int64) << 48) - numbers[near]
        numbers = numbers[near[np.argsort(order)[:count]]]
    found: list[int] = numbers.tolist()
    return found


def _differing(signs: Any, vector: _Vectors) -> Any:
    """Return how many of the signs of each vector differ from those of `vector`: uint16."""
    asked = np.packbits(vector > 0).view(np.uint64)
    differing = np.zeros(signs.shape[1], np.uint16)
    for first in range(0, len(differing), _BLOCK):
        block = slice(first, first + _BLOCK)
        for word, of_asked in zip(signs, asked, strict=True):
            differing[block] += np.bitwise_count(word[block] ^ of_asked)
    return differing
