"""Define every table of the database, as a new one gets it; `migrations/` changes older ones."""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    DateTime,
    Dialect,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    event,
    false,
    text,
)
from sqlalchemy.types import TypeEngine

from streamer.domain.result import Result


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


RESULT_FIELDS = [name for name in Result.model_fields if name not in ("alert", "traceparent")]
"""Fields of a result that are stored; the rule of an alert is with its incidents."""

_COUNTS = ("frames", "tiles")
_TOKENS = ("vision_tokens", "prompt_tokens", "cached_tokens", "completion_tokens")
_TIMES = ("decode_ms", "queue_ms", "encode_ms", "generate_ms", "total_ms", "newest_frame_age")
_TYPES: dict[str, TypeEngine[Any]] = {
    **dict.fromkeys(("start", "end", "created_at", "frames_from", "frames_to"), UtcDateTime()),
    **dict.fromkeys(("data", "error", "plan", "frame_times", "gaps"), JSON(none_as_null=True)),
    **dict.fromkeys((*_COUNTS, *_TOKENS), Integer()),
    **dict.fromkeys(_TIMES, Float()),
    "stale": Boolean(),
}

MAX_DELAY = timedelta(minutes=5)
"""Time from the start of a clip to its result; of more, the result is `far`, as answers about the
past are. So a range of clips is a range of `created_at`, which has indices, and few far ones."""

MAX_ADVANCE = timedelta(minutes=1)
"""Time by which the end of a clip is after its result, because clocks differ. Of more, the result
is `far`: windows of a recording are dated by their place in it."""

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
        for name in RESULT_FIELDS
    ),
    # Whether the clip is not close before `created_at`: see MAX_DELAY.
    Column("far", Boolean, nullable=False, server_default=false()),
    # With all that a range is decided by, so that looking for its ends reads no result.
    Index("results_by_time", "created_at", "number", "start", "end", "far"),
    Index("results_by_kind", "kind", "created_at", "number"),
    Index("results_by_stream", "stream_id", "created_at", "number"),
    Index("results_by_stream_and_kind", "stream_id", "kind", "created_at", "number"),
    Index("results_by_name", "stream_name", "created_at", "number"),
    Index("results_by_name_and_kind", "stream_name", "kind", "created_at", "number"),
)
_far = results.c.far.is_(True)
Index(
    "results_far",
    *(results.c[name] for name in ("far", "end", "start", "created_at", "number", "kind")),
    sqlite_where=_far,
    postgresql_where=_far,
)

_WORDS = {
    "sqlite": (
        """
        CREATE VIRTUAL TABLE results_words USING fts5(
            text, prompt, stream_id, stream_name, kind, far,
            content='results', content_rowid='number',
            tokenize='unicode61 remove_diacritics 0'
        )
        """,
        """
        CREATE TRIGGER results_words_added AFTER INSERT ON results BEGIN
            INSERT INTO results_words(rowid, text, prompt, stream_id, stream_name, kind, far)
            VALUES (
                new.number, new.text, new.prompt, new.stream_id, new.stream_name, new.kind, new.far
            );
        END
        """,
        """
        CREATE TRIGGER results_words_removed AFTER DELETE ON results BEGIN
            INSERT INTO results_words(
                results_words, rowid, text, prompt, stream_id, stream_name, kind, far
            ) VALUES (
                'delete', old.number, old.text, old.prompt, old.stream_id, old.stream_name,
                old.kind, old.far
            );
        END
        """,
    ),
    # Its parser would take `man/woman` for a path and `door.open` for a host.
    "postgresql": (
        """
        ALTER TABLE results ADD COLUMN words tsvector GENERATED ALWAYS AS (
            to_tsvector('simple', translate(
                coalesce(text, '') || ' ' || prompt,
                $$!"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~$$,
                repeat(' ', 32)
            ))
        ) STORED
        """,
        "CREATE INDEX results_by_words ON results USING gin (words)",
        # FTS5 has these among its words.
        "CREATE INDEX results_words_by_stream ON results (stream_id, number)",
        "CREATE INDEX results_words_by_name ON results (stream_name, number)",
    ),
}
"""The index of words, which each kind of database has its own of."""


@event.listens_for(results, "after_create")
def _create_words(_table: Table, connection: Connection, **_: object) -> None:
    for statement in _WORDS[connection.dialect.name]:
        connection.execute(text(statement))


result_vectors = Table(
    "result_vectors",
    metadata,
    # Orders vectors by their making, so that a reader finds those that are new to it.
    Column("position", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    # Of the result.
    Column("number", BigInteger, nullable=False, unique=True),
    # The sign of each dimension, as bits: what a search compares first.
    Column("signs", LargeBinary, nullable=False),
    # Each dimension as an int8.
    Column("vector", LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)

incidents = Table(
    "incidents",
    metadata,
    # Orders incidents by arrival, and is the cursor of a listing.
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("watch_id", Text, nullable=False),
    Column("stream_id", Text, nullable=False),
    Column("stream_name", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("opened_at", UtcDateTime(), nullable=False),
    Column("updated_at", UtcDateTime(), nullable=False),
    Column("seen", Boolean, nullable=False),
    # What the model is still to be asked for the summary.
    Column("to_describe", Text),
    Column("record", JSON, nullable=False),
    Index("incidents_by_stream", "stream_id", "number"),
    Index("incidents_by_update", "updated_at"),
    Index(
        "one_incident_at_a_time",
        "watch_id",
        "stream_id",
        unique=True,
        sqlite_where=text("state <> 'resolved'"),
        postgresql_where=text("state <> 'resolved'"),
    ),
)

alert_states = Table(
    "alert_states",
    metadata,
    Column("watch_id", Text, primary_key=True),
    Column("stream_id", Text, primary_key=True),
    Column("incident_id", Text),
    Column("windows", JSON, nullable=False),
    Column("consumed", UtcDateTime()),
    Column("told", Float, nullable=False),
    Column("updated_at", UtcDateTime(), nullable=False),
)

incident_pictures = Table(
    "incident_pictures",
    metadata,
    Column("incident_id", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("captured_at", UtcDateTime(), nullable=False),
    Column("jpeg", LargeBinary, nullable=False),
)

incident_messages = Table(
    "incident_messages",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("channel", Text, nullable=False),
    Column("incident_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("body", JSON, nullable=False),
    Column("created_at", UtcDateTime(), nullable=False),
    Column("due_at", UtcDateTime(), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("delivered_at", UtcDateTime()),
    Index("incident_messages_by_channel", "channel", "number"),
)

silences = Table(
    "silences",
    metadata,
    Column("id", Text, primary_key=True),
    Column("starts_at", UtcDateTime(), nullable=False),
    Column("ends_at", UtcDateTime(), nullable=False),
    Column("record", JSON, nullable=False),
    Index("silences_by_end", "ends_at"),
)

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("url", Text, nullable=False),
    Column("types", JSON(none_as_null=True)),
    Column("streams", JSON(none_as_null=True)),
    Column("description", Text),
    Column("enabled", Boolean, nullable=False),
    Column("enabled_at", UtcDateTime(), nullable=False),
    Column("disabled_reason", Text),
    # Whether the last attempt failed.
    Column("failing", Boolean, nullable=False),
    Column("dropped", Integer, nullable=False),
    # Encrypted if there is a key.
    Column("secret", Text, nullable=False),
    Column("created_at", UtcDateTime(), nullable=False),
)

webhook_deliveries = Table(
    "webhook_deliveries",
    metadata,
    Column("number", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("webhook_id", Text, nullable=False),
    Column("event_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("status", Integer),
    Column("error", Text),
    Column("created_at", UtcDateTime(), nullable=False),
    Column("due_at", UtcDateTime(), nullable=False),
    Column("claimed_until", UtcDateTime()),
    Column("ended_at", UtcDateTime()),
    Index("webhook_deliveries_once", "webhook_id", "event_id", unique=True),
    Index("webhook_deliveries_by_state", "webhook_id", "state", "number"),
)

webhook_positions = Table(
    "webhook_positions",
    metadata,
    Column("name", Text, primary_key=True),
    Column("position", Text, nullable=False),
)
