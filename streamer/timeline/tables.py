"""Define every table of the database; `migrations/` creates and changes them."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    TypeDecorator,
)
from sqlalchemy.types import TypeEngine

from streamer.domain import Result


class UtcDateTime(TypeDecorator[datetime]):
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


RESULT_LISTS = ("frame_times", "gaps")
"""Fields of a result that are lists of records or times, stored as JSON."""

_COUNTS = ("frames", "tiles")
_TOKENS = ("vision_tokens", "prompt_tokens", "cached_tokens", "completion_tokens")
_TIMES = ("decode_ms", "queue_ms", "encode_ms", "generate_ms", "total_ms", "newest_frame_age")
_TYPES: dict[str, TypeEngine[Any]] = {
    **dict.fromkeys(("start", "end", "created_at", "frames_from", "frames_to"), UtcDateTime()),
    **dict.fromkeys(("data", "error", "plan", *RESULT_LISTS), JSON(none_as_null=True)),
    **dict.fromkeys((*_COUNTS, *_TOKENS), Integer()),
    **dict.fromkeys(_TIMES, Float()),
    "stale": Boolean(),
}

metadata = MetaData()

results = Table(
    "results",
    metadata,
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
