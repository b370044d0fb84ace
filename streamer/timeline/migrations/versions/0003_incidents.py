"""Add incidents: what alerts have found, their pictures and messages, and silences."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the tables of incidents."""
    moment = sa.DateTime(timezone=True)
    number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
    op.create_table(
        "incidents",
        sa.Column("number", number, primary_key=True),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("watch_id", sa.Text, nullable=False),
        sa.Column("stream_id", sa.Text, nullable=False),
        sa.Column("stream_name", sa.Text, nullable=False),
        sa.Column("severity", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("opened_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("seen", sa.Boolean, nullable=False),
        sa.Column("to_describe", sa.Text),
        sa.Column("record", sa.JSON, nullable=False),
    )
    op.create_index("incidents_by_stream", "incidents", ["stream_id", "number"])
    op.create_index("incidents_by_update", "incidents", ["updated_at"])
    unresolved = sa.text("state <> 'resolved'")
    op.create_index(
        "one_incident_at_a_time",
        "incidents",
        ["watch_id", "stream_id"],
        unique=True,
        sqlite_where=unresolved,
        postgresql_where=unresolved,
    )
    op.create_table(
        "alert_states",
        sa.Column("watch_id", sa.Text, primary_key=True),
        sa.Column("stream_id", sa.Text, primary_key=True),
        sa.Column("incident_id", sa.Text),
        sa.Column("windows", sa.JSON, nullable=False),
        sa.Column("consumed", moment),
        sa.Column("told", sa.Float, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
    )
    op.create_table(
        "incident_pictures",
        sa.Column("incident_id", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("captured_at", moment, nullable=False),
        sa.Column("jpeg", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "incident_messages",
        sa.Column("number", number, primary_key=True),
        sa.Column("channel", sa.Text, nullable=False),
        sa.Column("incident_id", sa.Text, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("due_at", moment, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("delivered_at", moment),
    )
    op.create_index("incident_messages_by_channel", "incident_messages", ["channel", "number"])
    op.create_table(
        "silences",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("starts_at", moment, nullable=False),
        sa.Column("ends_at", moment, nullable=False),
        sa.Column("record", sa.JSON, nullable=False),
    )
    op.create_index("silences_by_end", "silences", ["ends_at"])
