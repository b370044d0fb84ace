"""Delete old results in small steps, so that recording never waits for long."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Connection, delete, func, or_, select, text

from streamer.clock import Clock
from streamer.domain.timestamp import to_datetime
from streamer.timeline.database import Database
from streamer.timeline.tables import result_vectors, results

MAX_STEP = 1000
"""Results that one step deletes: a fraction of a second."""

_INTERVAL = 60.0
"""Seconds between two looks for results that are too old, once there are none."""

_LOOK_BACK = 86_400.0
"""Seconds after which all results are looked at again, not only those that have become too old."""

_columns = results.c


class ResultExpiry:
    """Deletes results by age and by size. Incidents are kept.

    Args:
        database: where the results are.
        clock: the time.
        days: days that results are kept; None: for ever.
        max_bytes: bytes of the database, above which the oldest results are deleted; None: any.
        days_of_streams: returns, by id, the days of the streams that have a number of their own.
    """

    def __init__(
        self,
        database: Database,
        clock: Clock,
        *,
        days: float | None = None,
        max_bytes: int | None = None,
        days_of_streams: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._database = database
        self._clock = clock
        self._days = days
        self._max_bytes = max_bytes
        self._days_of_streams = days_of_streams
        self._next = float("-inf")
        self._seen_until: datetime | None = None
        self._seen_at = float("-inf")
        self._seen_days: Mapping[str, float] = {}

    def step(self) -> int:
        """Delete at most MAX_STEP results if a look is due; return how many were deleted.

        After a full step the next one is due at once.
        """
        now = self._clock.monotonic()
        if now < self._next:
            return 0
        deleted = self._delete_old() or self._delete_surplus()
        if deleted < MAX_STEP:
            self._next = now + _INTERVAL
        return deleted

    def _delete_old(self) -> int:
        days = self._days_of_streams()
        now = to_datetime(self._clock.time())
        deleted = 0
        for stream_id, number in days.items():
            deleted += self._delete(
                MAX_STEP - deleted,
                _columns.stream_id == stream_id,
                _columns.created_at < now - timedelta(days=number),
            )
            if deleted == MAX_STEP:
                return deleted
        if self._days is None:
            return deleted
        again = self._clock.monotonic() - self._seen_at > _LOOK_BACK
        if again or days != self._seen_days:
            self._seen_until, self._seen_days = None, dict(days)
            self._seen_at = self._clock.monotonic()
        before = now - timedelta(days=self._days)
        conditions = [_columns.created_at < before]
        if self._seen_until is not None:
            conditions.append(_columns.created_at >= self._seen_until)
        if days:
            others = _columns.stream_id.not_in(list(days))
            conditions.append(or_(_columns.stream_id.is_(None), others))
        deleted += self._delete(MAX_STEP - deleted, *conditions)
        if deleted < MAX_STEP:
            self._seen_until = before
        return deleted

    def _delete_surplus(self) -> int:
        if self._max_bytes is None or self._database.read(size_of) <= self._max_bytes:
            return 0
        return self._delete(MAX_STEP)

    def _delete(self, number: int, *conditions: ColumnElement[bool]) -> int:
        oldest = (
            select(_columns.number)
            .where(*conditions)
            .order_by(_columns.created_at, _columns.number)
            .limit(number)
        )

        def write(connection: Connection) -> int:
            numbers = list(connection.execute(oldest).scalars())
            for table in (results, result_vectors):
                connection.execute(delete(table).where(table.c.number.in_(numbers)))
            return len(numbers)

        return self._database.write(write)


def size_of(connection: Connection) -> int:
    """Return the bytes that the database uses: of an SQLite file without its free pages.

    PostgreSQL does not tell which of its pages are free, so there it is an estimate: twice the
    bytes of the results, because the indices take as much again.
    """
    if connection.dialect.name == "sqlite":
        statement = text(
            "SELECT (page_count - freelist_count) * page_size FROM "
            "pragma_page_count(), pragma_freelist_count(), pragma_page_size()"
        )
        return int(connection.execute(statement).scalar_one())
    count = connection.execute(select(func.count()).select_from(results)).scalar_one()
    sample = text(
        "SELECT coalesce(avg(pg_column_size(r)), 0) FROM "
        "(SELECT * FROM results ORDER BY number DESC LIMIT 1000) AS r"
    )
    return int(2 * count * connection.execute(sample).scalar_one())
