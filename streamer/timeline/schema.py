"""Bring the tables of a database to the version of this program."""

import threading
from pathlib import Path

import structlog
from sqlalchemy import (
    Column,
    Connection,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    insert,
    inspect,
    text,
)

from streamer.errors import ErrorCode, StreamerError
from streamer.timeline.tables import metadata

_log = structlog.get_logger(__name__)

_MIGRATIONS = Path(__file__).with_name("migrations")

HEAD = max(path.name[:4] for path in (_MIGRATIONS / "versions").glob("[0-9]*.py"))
"""The version of the tables that this program uses: the revision of the newest step."""

_FIRST = "0001"
"""The version of a database that release 0.1.0 made; such a database does not say its version."""

_alembic_version = Table(
    "alembic_version",
    MetaData(),
    Column("version_num", String(32), nullable=False),
    PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)
"""Where Alembic keeps the version of the tables."""

_LOCK = 0x4E56494C41
"""Number of the PostgreSQL advisory lock under which the tables are changed."""


def tables_version(connection: Connection) -> str | None:
    """Return the version of the database's tables; None if it has none.

    Raises StreamerError(DATABASE_UNAVAILABLE) if a newer release has changed them.
    """
    tables = inspect(connection)
    # In this order: another program may create both between the two questions, in one transaction.
    has_results = tables.has_table("results")
    if not tables.has_table("alembic_version"):
        return _FIRST if has_results else None
    found = str(connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one())
    if found > HEAD:
        raise StreamerError(
            ErrorCode.DATABASE_UNAVAILABLE,
            f"The timeline's database has version {found}, made by a newer release; this program "
            f"knows {HEAD} and older: upgrade nvila-streamer, or set STREAMER_DATABASE_URL to "
            "another database.",
        )
    return found


_alembic = threading.Lock()
"""Held while Alembic runs: it keeps its state in globals, so it serves one thread at a time."""


def upgrade_tables(connection: Connection) -> None:
    """Make the tables, or run the steps that they lack, in the transaction of `connection`.

    Programs that upgrade at the same time wait for each other; on SQLite the transaction must hold
    the write lock. Raises StreamerError as :func:`tables_version` does.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
    found = tables_version(connection)
    if found is None:
        _create_tables(connection)
    elif found != HEAD:
        run_steps(connection, found)


def _create_tables(connection: Connection) -> None:
    """Make the tables of an empty database as they are after the last step, without the steps:
    Alembic takes half a second to import, and 13 MB for as long as the program runs."""
    metadata.create_all(connection, checkfirst=False)
    _alembic_version.create(connection)
    connection.execute(insert(_alembic_version).values(version_num=HEAD))


def run_steps(connection: Connection, found: str | None) -> None:
    """Run the steps after version `found`, or all of them, in the transaction of `connection`."""
    # only a program that has steps to run imports it
    from alembic import command
    from alembic.config import Config

    count = connection.execute(text("SELECT count(*) FROM results")).scalar() if found else 0
    if count:  # an upgrade of many results takes minutes
        _log.warning("timeline_upgrade_begins", version=found, to=HEAD, results=count)
    config = Config(attributes={"connection": connection, "told": bool(count)})
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    with _alembic:
        if found == _FIRST:
            command.stamp(config, _FIRST)
        command.upgrade(config, "head")
    if count:
        _log.warning("timeline_upgraded", version=HEAD)
