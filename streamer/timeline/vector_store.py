"""Keep the vectors of results in the database: what search by meaning compares.

A vector is stored twice: the signs of its dimensions, 48 bytes, and each dimension as an int8, 384
bytes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, func, select
from sqlalchemy.dialects import postgresql, sqlite

from streamer.domain.kinds import ResultKind
from streamer.timeline.database import Database
from streamer.timeline.tables import result_vectors as _vectors
from streamer.timeline.tables import results as _results

if TYPE_CHECKING:
    import numpy as np

MAX_VECTORS = 2_000_000
"""Newest results that are searched by meaning: in memory they take 60 bytes each."""

_DISORDER = 2_000
"""Numbers of results below the newest vector among which some may come late: programs that record
at the same time finish in any order."""

_SHORT = 3
"""Longest answer, in words, that is searched together with its question: `yes` says nothing."""

SEARCHED = [ResultKind.CAPTION.value, ResultKind.ANSWER.value]
"""Kinds of results that have vectors."""

_columns = _results.c


def searched_text(prompt: str, text: str) -> str:
    """Return what the vector of a result is about: its answer, a short one with its question."""
    return text if len(text.split()) > _SHORT else f"{prompt} {text}"


class VectorStore:
    """The vectors in the database, and the results that have none yet."""

    def __init__(self, database: Database, max_vectors: int = MAX_VECTORS) -> None:
        self._database = database
        self._max_vectors = max_vectors
        self._below: int | None = None  # number from which on no result needs a vector

    def new(self, limit: int) -> list[tuple[int, str]]:
        """Return number and text of up to `limit` results that came after the newest vector."""

        def read(connection: Connection) -> list[tuple[int, str]]:
            newest = connection.execute(select(func.max(_vectors.c.number))).scalar()
            if newest is None:
                return []
            known = select(_vectors.c.number).where(_vectors.c.number > newest - _DISORDER)
            statement = (
                _texts()
                .where(_columns.number > newest - _DISORDER, _columns.number.not_in(known))
                .order_by(_columns.number)
                .limit(limit)
            )
            return _read_texts(connection, statement)

        return self._database.read(read)

    def old(self, limit: int) -> list[tuple[int, str]] | None:
        """Return number and text of up to `limit` older results without a vector, newest first.

        None: there are none. Results that are not added are returned again.
        """

        def read(connection: Connection) -> list[tuple[int, str]] | None:
            last = connection.execute(select(func.max(_columns.number))).scalar()
            if last is None:
                return None
            oldest = connection.execute(select(func.min(_vectors.c.number))).scalar()
            below = min(end for end in (last + 1, oldest, self._below) if end is not None)
            first = connection.execute(select(func.min(_columns.number))).scalar() or 0
            if below <= max(first, last - self._max_vectors + 1):
                return None
            lowest = below - limit
            statement = (
                _texts()
                .where(_columns.number < below, _columns.number >= lowest)
                .order_by(_columns.number.desc())
            )
            found = _read_texts(connection, statement)
            if not found:
                self._below = lowest
            return found

        return self._database.read(read)

    def add(self, numbers: Sequence[int], vectors: "np.ndarray[Any, np.dtype[np.float32]]") -> None:
        """Store the vectors, [numbers, DIMENSIONS], of results. Those that exist stay as they are,
        and results that were deleted meanwhile get none."""
        if not numbers:
            return
        import numpy as np  # here: a recorder without results does not need it

        scaled = np.abs(vectors).max(axis=1, keepdims=True)
        small = np.rint(vectors / np.where(scaled == 0, 1, scaled) * 127).astype(np.int8)
        signs = np.packbits(vectors > 0, axis=1)
        rows = [
            {"number": number, "signs": signs[place].tobytes(), "vector": small[place].tobytes()}
            for place, number in enumerate(numbers)
        ]
        insert = postgresql.insert if self._database.dialect == "postgresql" else sqlite.insert
        statement = insert(_vectors).on_conflict_do_nothing()

        def write(connection: Connection) -> None:
            there = set(
                connection.execute(
                    select(_columns.number).where(_columns.number.in_(list(numbers)))
                ).scalars()
            )
            kept = [row for row in rows if row["number"] in there]
            if kept:
                connection.execute(statement, kept)

        self._database.write(write)


def _texts() -> Any:
    wanted = _columns.kind.in_(SEARCHED), _columns.text.is_not(None), _columns.text != ""
    return select(_columns.number, _columns.prompt, _columns.text).where(*wanted)


def _read_texts(connection: Connection, statement: Any) -> list[tuple[int, str]]:
    rows = connection.execute(statement)
    return [(number, searched_text(prompt, text)) for number, prompt, text in rows]
