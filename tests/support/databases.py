"""Databases that have the tables of a timeline already, as to make them takes longer than most
tests; tests/streamer/timeline/test_migrations.py is about that."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from streamer.timeline.results import Timeline


@pytest.fixture(scope="session")
def empty_timeline(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], str]:
    """Put an empty timeline on SQLite into a folder, which is created; return its address."""
    from streamer.timeline.results import Timeline

    original = tmp_path_factory.mktemp("database") / "timeline.db"
    Timeline(f"sqlite:///{original}").close()

    def copy(folder: Path) -> str:
        folder.mkdir(parents=True, exist_ok=True)
        return f"sqlite:///{shutil.copy(original, folder)}"

    return copy


@pytest.fixture(scope="session")
def shared_postgres(postgres_port: int) -> str:
    """The address of one database for many tests, which `empty` it first."""
    import psycopg

    name = f"shared_{os.getpid()}"
    admin = f"postgresql://test@127.0.0.1:{postgres_port}/postgres"
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"postgresql+psycopg://test@127.0.0.1:{postgres_port}/{name}"


def empty(timeline: "Timeline") -> None:
    """Delete all that is in a database; PostgreSQL counts from 1 again."""
    from streamer.timeline.tables import metadata

    def delete_all(connection: "Connection") -> None:
        # TRUNCATE makes new files for each table and index
        for table in reversed(metadata.sorted_tables):
            connection.execute(table.delete())
        if timeline.database.dialect == "postgresql":
            connection.exec_driver_sql(
                "SELECT setval(oid, 1, false) FROM pg_class WHERE relkind = 'S'"
            )

    timeline.database.write(delete_all)
