"""Create the table of release 0.1.0."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create `results` and its indices."""
    moment = sa.DateTime(timezone=True)
    op.create_table(
        "results",
        sa.Column("number", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("request_id", sa.Text, nullable=False, unique=True),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("stream_id", sa.Text),
        sa.Column("stream_name", sa.Text),
        sa.Column("watch_id", sa.Text),
        sa.Column("start", moment),
        sa.Column("end", moment),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("prompt", sa.Text, nullable=False),
        sa.Column("text", sa.Text),
        sa.Column("data", sa.JSON),
        sa.Column("finish_reason", sa.Text),
        sa.Column("error", sa.JSON),
        sa.Column("model", sa.Text),
        sa.Column("frames", sa.Integer),
        sa.Column("tiles", sa.Integer),
        sa.Column("plan", sa.JSON),
        sa.Column("vision_tokens", sa.Integer),
        sa.Column("prompt_tokens", sa.Integer),
        sa.Column("cached_tokens", sa.Integer),
        sa.Column("completion_tokens", sa.Integer),
        sa.Column("decode_ms", sa.Float),
        sa.Column("queue_ms", sa.Float),
        sa.Column("encode_ms", sa.Float),
        sa.Column("generate_ms", sa.Float),
        sa.Column("total_ms", sa.Float),
    )
    op.create_index("results_by_time", "results", ["created_at", "number"])
    op.create_index("results_by_stream", "results", ["stream_id", "created_at"])
