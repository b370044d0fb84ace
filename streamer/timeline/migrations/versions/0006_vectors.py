"""Add the vectors of search by meaning, and indices for ranges and for the words of a stream."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Create the table, which the recorder fills if it has the extra `search`, and the indices."""
    op.create_table(
        "result_vectors",
        sa.Column(
            "position",
            sa.BigInteger().with_variant(sa.Integer, "sqlite"),
            primary_key=True,
        ),
        sa.Column("number", sa.BigInteger, nullable=False, unique=True),
        sa.Column("signs", sa.LargeBinary, nullable=False),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    is_far = sa.column("far", sa.Boolean).is_(True)
    op.drop_index("results_far", "results")
    op.create_index(
        "results_far",
        "results",
        ["far", "end", "start", "created_at", "number", "kind"],
        sqlite_where=is_far,
        postgresql_where=is_far,
    )
    op.drop_index("results_by_time", "results")
    op.create_index("results_by_time", "results", ["created_at", "number", "start", "end", "far"])
    if op.get_bind().dialect.name == "postgresql":  # FTS5 has them among its words
        op.create_index("results_words_by_stream", "results", ["stream_id", "number"])
        op.create_index("results_words_by_name", "results", ["stream_name", "number"])
