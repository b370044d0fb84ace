"""Incidents in real databases."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import Connection

from streamer.alert_rule import AlertRule
from streamer.domain import ErrorInfo, Result
from streamer.errors import ErrorCode
from streamer.incidents.store import Incidents, KeptPicture
from streamer.timeline.results import Timeline
from streamer.timeline.tables import metadata
from tests.support.postgres import new_database

START = datetime(2026, 11, 20, 8, 0, tzinfo=UTC)


class Alert:
    """One alert: records the results of its windows as the recorder does."""

    def __init__(self, timeline: Timeline, channels: tuple[str, ...] = ()) -> None:
        self.timeline = timeline
        self.incidents = Incidents(timeline.database, channels)
        self.rule = AlertRule()
        self.watch_id, self.stream_id, self.stream_name = "wch_1", "str_1", "lobby"

    def result(self, place: float, probability: float | None, **fields: object) -> Result:
        """Return the result of a window of ten seconds; None: it failed."""
        start = START + timedelta(seconds=10 * place)
        values: dict[str, object] = {
            "request_id": f"req_{self.watch_id}_{place}",
            "kind": "error" if probability is None else "alert",
            "stream_id": self.stream_id,
            "stream_name": self.stream_name,
            "watch_id": self.watch_id,
            "start": start,
            "end": start + timedelta(seconds=10),
            "prompt": "Is a car parked in front of the gate?",
            "alert": self.rule,
        }
        if probability is None:
            values["error"] = ErrorInfo(code=ErrorCode.FRAMES_EXPIRED, message="Gone.")
        else:
            values["text"] = "yes" if probability > 0.5 else "no"
            values["data"] = {"yes": probability > 0.5, "probability": probability}
        return Result.model_validate(values | fields)

    def record(self, *results: Result, pictures: dict[str, KeptPicture] | None = None) -> int:
        """Record results and count their windows, in one transaction."""
        return self.timeline.record(
            list(results),
            also=lambda connection, new: self.incidents.count(connection, new, pictures or {}),
        )

    def see(self, *probabilities: float | None, first: int = 0) -> None:
        """Record one window after the other."""
        for place, probability in enumerate(probabilities, first):
            self.record(self.result(place, probability))


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def database_url(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The address of a database that the tests of a module share; `timeline` empties it."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('incidents') / 'timeline.db'}"
        return
    with new_database(request.getfixturevalue("postgres_port")) as name:
        port = request.getfixturevalue("postgres_port")
        yield f"postgresql+psycopg://test@127.0.0.1:{port}/{name}"


@pytest.fixture
def timeline(database_url: str) -> Iterator[Timeline]:
    """An empty timeline."""
    opened = Timeline(database_url, upgrade=True)
    empty(opened)
    yield opened
    opened.close()


def empty(timeline: Timeline) -> None:
    """Delete everything that is in a timeline."""

    def delete_all(connection: Connection) -> None:
        for table in metadata.tables.values():
            connection.execute(table.delete())

    timeline.database.write(delete_all)


@pytest.fixture
def alert(timeline: Timeline) -> Alert:
    """An alert with the default rule."""
    return Alert(timeline)
