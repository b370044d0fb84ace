"""Run the steps for :func:`streamer.timeline.schema.upgrade_tables`; Alembic loads this file."""

from typing import Any

import structlog
from alembic import context

from streamer.timeline.tables import metadata

_log = structlog.get_logger(__name__)


def _tell(ctx: Any, step: Any, heads: Any, run_args: Any) -> None:
    if context.config.attributes["told"]:
        _log.warning("timeline_upgrade_step", version=step.up_revision_id)


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot change a column in place
    on_version_apply=_tell,
)
context.run_migrations()
