"""Add the vectors of search by meaning, and indices for ranges and for the words of a stream."""

from typing import Any

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
    where: dict[str, Any] = {"sqlite_where": is_far, "postgresql_where": is_far}
    by_time = ["created_at", "number", "start", "end", "far"]
    far = ["far", "end", "start", "created_at", "number", "kind"]
    if op.get_bind().dialect.name == "sqlite":
        for name in ("results_by_time", "results_far"):
            op.drop_index(name, "results")
        op.create_index("results_by_time", "results", by_time)
        op.create_index("results_far", "results", far, **where)
        return
    # FTS5 has these among its words
    op.create_index("results_words_by_stream", "results", ["stream_id", "number"])
    op.create_index("results_words_by_name", "results", ["stream_name", "number"])
    op.create_index("results_by_time_new", "results", by_time)
    op.create_index("results_far_new", "results", far, **where)
    # last, because this locks the table for readers until the step is done
    for name in ("results_by_time", "results_far"):
        op.drop_index(name, "results")
        op.execute(f"ALTER INDEX {name}_new RENAME TO {name}")
