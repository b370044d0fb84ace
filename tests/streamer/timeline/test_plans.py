"""No filter of the timeline reads the whole table: the databases say how they would find it."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import event

from streamer.domain.result import Result

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
SINCE, UNTIL = {"since": NOON + HOUR}, {"until": NOON + 2 * HOUR}
RANGE = {**SINCE, **UNTIL}
FILTERS: dict[str, dict[str, Any]] = {
    "newest": {},
    "stream": {"stream": "gate-3"},
    "stream_id": {"stream": "str_3"},
    "kind": {"kind": "error"},
    "stream_kind": {"stream": "gate-9", "kind": "error"},
    "since": SINCE,
    "until": UNTIL,
    "range": RANGE,
    "stream_range": {"stream": "gate-3", **RANGE},
    "kind_range": {"kind": "error", **RANGE},
    "cursor": {"cursor": True},
    "stream_cursor": {"stream": "gate-3", "cursor": True},
    "common_word": {"q": "car"},
    "rare_word": {"q": "giraffe"},
    "beginning": {"q": "gir*"},
    "word_stream": {"q": "car", "stream": "gate-3"},
    "word_range": {"q": "car", **RANGE},
    "rare_word_range": {"q": "giraffe", **RANGE},
    "word_stream_range_cursor": {"q": "car", "stream": "gate-3", **RANGE, "cursor": True},
}


@pytest.fixture
def filled(timeline):
    """A timeline with some hours of ten cameras."""
    timeline.record(
        [
            Result(
                request_id=f"req_{number}",
                kind="error" if number % 100 == 9 else "caption",
                stream_id=f"str_{number % 10}",
                stream_name=f"gate-{number % 10}",
                start=NOON + timedelta(seconds=10 * number - (7200 if number % 50 == 0 else 0)),
                end=NOON + timedelta(seconds=10 * number + 10),
                created_at=NOON + timedelta(seconds=10 * number + 12),
                prompt="Describe the scene.",
                text="a giraffe" if number == 700 else "a red car",
            )
            for number in range(2000)
        ]
    )
    if timeline.database.dialect == "postgresql":
        timeline.database.write(lambda connection: connection.exec_driver_sql("ANALYZE results"))
    return timeline


def test_no_filter_reads_the_whole_table(filled):
    for name, filters in FILTERS.items():
        # given the statements of a query, in the middle of its pages
        wanted = dict(filters)
        if wanted.pop("cursor", False):
            wanted["cursor"] = filled.query(**wanted, limit=5).next_cursor
        statements = statements_of(filled, wanted)

        # then the database reads an index for each
        for statement, parameters in statements:
            plan = filled.database.read(lambda c, s=statement, p=parameters: plan_of(c, s, p))
            assert not [step for step in plan if reads_all(step)], (name, statement, plan)
            # of a common word not all is read that the index has of it
            if filters.get("q") == "car":
                assert not [step for step in plan if "results_by_words" in step], (name, plan)


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_a_query_that_is_asked_often_is_planned_for_its_own_values(timeline):
    """A plan for any values reads all of an hour to find a rare word in it."""
    for hour in range(12):
        timeline.query(q="giraffe", since=NOON + hour * HOUR, until=NOON + (hour + 1) * HOUR)

    def prepared(connection):
        return list(connection.exec_driver_sql("SELECT statement FROM pg_prepared_statements"))

    assert timeline.database.read(prepared) == []


def statements_of(timeline, filters):
    statements = []

    def note(_connection, _cursor, statement, parameters, *_):
        statements.append((statement, parameters))

    engine = timeline.database.engine
    event.listen(engine, "before_cursor_execute", note)
    assert timeline.query(**filters, limit=10).results
    event.remove(engine, "before_cursor_execute", note)
    return statements


def plan_of(connection, statement, parameters):
    if connection.dialect.name == "sqlite":
        rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        return [row[3] for row in rows]
    connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # of a small table it is cheap
    return [row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)]


def reads_all(step):
    if step.startswith("SCAN results_words"):
        return ":M" not in step  # it matches words
    # with an index in its order, SQLite stops after a page
    return "Seq Scan on results" in step or (
        step.startswith("SCAN results") and "USING" not in step
    )
