"""Add what was seen: when the frames were captured, gaps between them, and warnings."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the columns that are missing: builds between the releases added some themselves."""
    moment = sa.DateTime(timezone=True)
    existing = {column["name"] for column in sa.inspect(op.get_bind()).get_columns("results")}
    for column in (
        sa.Column("warning", sa.Text),
        sa.Column("frames_from", moment),
        sa.Column("frames_to", moment),
        sa.Column("frame_times", sa.JSON),
        sa.Column("newest_frame_age", sa.Float),
        sa.Column("gaps", sa.JSON),
        sa.Column("stale", sa.Boolean),
    ):
        if column.name not in existing:
            op.add_column("results", column)
