"""Fixtures: each test runs on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from streamer.domain.result import Result
from streamer.timeline.results import Timeline
from tests.support.databases import empty

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def result(number: int = 0, **fields: Any) -> Result:
    """Return a caption of the clip that begins 10 s times `number` after NOON."""
    at = NOON + timedelta(seconds=10 * number)
    values = {
        "request_id": f"req_{number}",
        "kind": "caption",
        "stream_id": "str_1",
        "stream_name": "yard",
        "start": at,
        "end": at + timedelta(seconds=10),
        "created_at": at + timedelta(seconds=11),
        "prompt": "What is there?",
        "text": f"{number} people",
    }
    return Result(**values | fields)


@pytest.fixture(params=["sqlite", "postgresql"])
def dialect(request) -> str:
    """The kind of database."""
    return request.param


@pytest.fixture
def database_url(dialect, request, tmp_path) -> str:
    """The address of a database without tables."""
    if dialect == "sqlite":
        return f"sqlite:///{tmp_path / 'data' / 'timeline.db'}"
    port = request.getfixturevalue("postgres_port")
    name = request.getfixturevalue("postgres_database")
    return f"postgresql+psycopg://test@127.0.0.1:{port}/{name}"


@pytest.fixture
def timeline(dialect, request, empty_timeline, tmp_path) -> Iterator[Timeline]:
    """The timeline in a database that holds nothing."""
    if dialect == "sqlite":
        opened = Timeline(empty_timeline(tmp_path / "data"), time_limit=120)
    else:
        opened = Timeline(request.getfixturevalue("shared_postgres"), time_limit=120)
        empty(opened)
    yield opened
    opened.close()


@pytest.fixture
def timeline_url(timeline: Timeline) -> str:
    """The address of the database of `timeline`."""
    return timeline.database.engine.url.render_as_string(hide_password=False)
