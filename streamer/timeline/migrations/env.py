"""Run the steps for :func:`streamer.timeline.schema.upgrade_tables`; Alembic loads this file."""

from alembic import context

from streamer.timeline.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot change a column in place
)
context.run_migrations()
