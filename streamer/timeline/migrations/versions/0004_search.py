"""Add full-text search, and an index for each filter of results."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# In PostgreSQL the parser would take `man/woman` for a path and `door.open` for a host.
_WORDS = """
ALTER TABLE results ADD COLUMN words tsvector GENERATED ALWAYS AS (
    to_tsvector('simple', translate(
        coalesce(text, '') || ' ' || prompt,
        $$!"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~$$,
        repeat(' ', 32)
    ))
) STORED
"""

_FTS = (
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
            'delete', old.number, old.text, old.prompt, old.stream_id, old.stream_name, old.kind,
            old.far
        );
    END
    """,
    "INSERT INTO results_words(results_words) VALUES ('rebuild')",
)

_FAR = {
    "sqlite": "start < datetime(created_at, '-5 minutes')"
    " OR \"end\" > datetime(created_at, '+1 minute')",
    "postgresql": "start < created_at - interval '5 minutes'"
    " OR \"end\" > created_at + interval '1 minute'",
}


def upgrade() -> None:
    """Index the words, and mark the clips that are far in time from their results."""
    op.add_column(
        "results", sa.Column("far", sa.Boolean, nullable=False, server_default=sa.false())
    )
    is_far = sa.column("far", sa.Boolean).is_(True)
    dialect = op.get_bind().dialect.name
    op.execute(f"UPDATE results SET far = true WHERE {_FAR[dialect]}")
    op.create_index(
        "results_far",
        "results",
        ["far", "end", "start", "created_at", "number"],
        sqlite_where=is_far,
        postgresql_where=is_far,
    )
    op.drop_index("results_by_stream", "results")
    for name, *columns in (
        ("results_by_kind", "kind"),
        ("results_by_stream", "stream_id"),
        ("results_by_stream_and_kind", "stream_id", "kind"),
        ("results_by_name", "stream_name"),
        ("results_by_name_and_kind", "stream_name", "kind"),
    ):
        op.create_index(name, "results", [*columns, "created_at", "number"])
    if dialect == "postgresql":
        op.execute(_WORDS)
        op.create_index("results_by_words", "results", ["words"], postgresql_using="gin")
    else:
        for statement in _FTS:
            op.execute(statement)
