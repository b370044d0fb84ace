"""Incidents in real databases."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from streamer.alert_rule import AlertRule
from streamer.domain.error_info import ErrorInfo
from streamer.domain.result import Result
from streamer.errors import ErrorCode
from streamer.incidents.store import Incidents, KeptPicture
from streamer.timeline.results import Timeline
from tests.support.databases import empty

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


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(
    request: pytest.FixtureRequest, empty_timeline: Callable[[Path], str], tmp_path: Path
) -> str:
    """The address of the database of `timeline`."""
    if request.param == "sqlite":
        return empty_timeline(tmp_path)
    url: str = request.getfixturevalue("shared_postgres")
    return url


@pytest.fixture
def timeline(database_url: str) -> Iterator[Timeline]:
    """An empty timeline."""
    opened = Timeline(database_url, time_limit=120)
    empty(opened)
    yield opened
    opened.close()


@pytest.fixture
def alert(timeline: Timeline) -> Alert:
    """An alert with the default rule."""
    return Alert(timeline)
