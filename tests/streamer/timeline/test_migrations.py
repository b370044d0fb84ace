"""Databases of older and newer releases, on SQLite and PostgreSQL."""

import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import structlog.testing
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from streamer.domain.frame import FrameResolution
from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.timeline import schema
from streamer.timeline.database import Database, engine_of
from streamer.timeline.results import Timeline, count_results
from streamer.timeline.tables import metadata

HERE = Path(__file__).parent


@pytest.fixture
def engine(database_url):
    """The database, as another program reaches it."""
    engine = engine_of(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def execute(engine):
    """Run SQL on the database, as another program would."""

    def run(script: str) -> None:
        with engine.connect() as connection:
            driver: Any = connection.connection.driver_connection
            if engine.dialect.name == "sqlite":
                driver.executescript(script)
            else:
                driver.execute(script)
                driver.commit()

    return run


@pytest.fixture
def old(dialect, execute):
    """A database that release 0.1.0 made, with five results."""
    execute((HERE / f"release_0_1_0.{dialect}.sql").read_text())


def version(engine) -> str | None:
    with engine.connect() as connection:
        return schema.tables_version(connection)


def check_old_results(timeline: Timeline) -> None:
    found = {each.request_id: each for each in timeline.query().results}
    assert sorted(found) == [f"req_{number}" for number in range(5)]
    caption = found["req_1"]
    assert (caption.text, caption.stream_name, caption.tiles) == (
        "1 people and a red car.",
        "yard",
        3,
    )
    assert caption.plan == [
        FrameResolution(grid=(2, 1), reason="most detail (22)"),
        FrameResolution(grid=(1, 1), reason="unchanged (0)"),
    ]
    assert (caption.frame_times, caption.gaps, caption.stale) == ([], [], False)
    assert found["req_3"].data == {"choice": "yes"}
    error = found["req_4"].error
    assert error is not None
    assert error.code is ErrorCode.INTERNAL


DEFINITIONS = {
    "sqlite": (
        'SELECT t.name, c.name, c.type, c."notnull", c.dflt_value, c.pk, c.hidden'
        " FROM sqlite_master t, pragma_table_xinfo(t.name) c",
        "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE type <> 'table'"
        " OR sql LIKE 'CREATE VIRTUAL%'",
        "SELECT name FROM sqlite_master WHERE sql LIKE '%AUTOINCREMENT%'",
    ),
    "postgresql": (
        "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable,"
        " column_default, generation_expression FROM information_schema.columns"
        " WHERE table_schema = 'public'",
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
        "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
        " WHERE connamespace = 'public'::regnamespace",
    ),
}


def definitions(connection) -> set[tuple[str, ...]]:
    """Return what defines the tables, whatever the order of their columns."""
    return {
        tuple(" ".join(str(value).split()) for value in row)
        for query in DEFINITIONS[connection.dialect.name]
        for row in connection.exec_driver_sql(query)
    }


def test_a_new_database_gets_what_the_steps_make(engine, database_url):
    # given what the steps make of an empty database, which then is empty again
    with engine.connect().execution_options(writes=True) as connection:
        with connection.begin() as transaction:
            schema.run_steps(connection, None)
            by_steps = definitions(connection)
            transaction.rollback()
        assert schema.tables_version(connection) is None

    # when it is opened for the first time
    Database(database_url).close()

    with engine.connect() as connection:
        assert definitions(connection) == by_steps
    assert version(engine) == schema.HEAD


@pytest.mark.parametrize("dialect", ["postgresql"])
def test_tables_that_appear_between_two_questions_are_not_old(engine, database_url, monkeypatch):
    # given another program that makes the tables just after the first question of this one
    asked = []
    has_table = sqlalchemy.Inspector.has_table

    def answer(inspector, name):
        found = has_table(inspector, name)
        asked.append(name)
        if len(asked) == 1:
            monkeypatch.undo()
            Timeline(database_url).close()
        return found

    monkeypatch.setattr(sqlalchemy.Inspector, "has_table", answer)

    # when this one asks for their version
    with engine.connect() as connection:
        found = schema.tables_version(connection)

    # then they are new
    assert asked
    assert found == schema.HEAD


def test_the_tables_are_those_that_the_program_uses(database_url):
    database = Database(database_url)

    def differences(connection):
        # the words are not among the columns: each kind of database has its own
        options = {
            "compare_type": True,
            "include_name": lambda name, *_: "words" not in (name or ""),
        }
        context = MigrationContext.configure(connection, opts=options)
        return compare_metadata(context, metadata)

    assert database.read(differences) == []
    assert database.read(schema.tables_version) == schema.HEAD
    database.close()


def test_the_steps_follow_each_other_by_number():
    steps = ScriptDirectory(str(Path(schema.__file__).with_name("migrations"))).walk_revisions()
    numbers = [step.revision for step in steps]

    assert numbers == [f"{number:04}" for number in range(len(numbers), 0, -1)]
    assert numbers[0] == schema.HEAD


def test_a_database_of_0_1_0_is_upgraded_and_keeps_its_results(old, database_url):
    timeline = Timeline(database_url, upgrade=True)

    check_old_results(timeline)
    new = Result(
        request_id="new",
        kind="caption",
        stream_id="str_1",
        stream_name="yard",
        prompt="?",
        stale=True,
    )
    assert timeline.record([new]) == 1
    assert timeline.get("new") == new
    assert timeline.database.read(schema.tables_version) == schema.HEAD
    timeline.close()
    Timeline(database_url).close()


def test_an_upgrade_says_how_far_it_is(old, database_url):
    with structlog.testing.capture_logs() as log:
        Timeline(database_url, upgrade=True).close()

    reported = [(line["event"], line["version"]) for line in log]
    assert log[0]["results"] == 5
    assert reported[0] == ("timeline_upgrade_begins", "0001")
    assert ("timeline_upgrade_step", "0004") in reported
    assert reported[-1] == ("timeline_upgraded", schema.HEAD)
    # and an empty database is made without a word
    with structlog.testing.capture_logs() as log:
        Timeline(database_url, upgrade=True).close()
    assert log == []


def test_a_database_of_version_5_keeps_its_results_and_gets_the_indices(execute, database_url):
    # given a database as it was before search by meaning
    timeline = Timeline(database_url)
    timeline.record(
        [
            Result(
                request_id=f"req_{number}",
                kind="caption",
                stream_id="str_1",
                stream_name="yard",
                prompt="?",
                text="a red car",
            )
            for number in range(30)
        ]
    )
    dialect = timeline.database.dialect
    timeline.close()
    far = "far IS TRUE" if dialect == "postgresql" else "far IS 1"
    execute(
        "DROP TABLE result_vectors; DROP INDEX results_by_time; DROP INDEX results_far;"
        "CREATE INDEX results_by_time ON results (created_at, number);"
        'CREATE INDEX results_far ON results (far, "end", start, created_at, number)'
        f" WHERE {far};"
        "UPDATE alembic_version SET version_num = '0005';"
        + (
            "DROP INDEX results_words_by_stream; DROP INDEX results_words_by_name;"
            if dialect == "postgresql"
            else ""
        )
    )

    timeline = Timeline(database_url, upgrade=True)

    assert len(timeline.query(q="car", stream="yard").results) == 30
    assert timeline.database.read(schema.tables_version) == schema.HEAD
    found = timeline.database.read(
        lambda connection: {
            each["name"]: each["column_names"]
            for each in sqlalchemy.inspect(connection).get_indexes("results")
        }
    )
    assert found["results_by_time"] == ["created_at", "number", "start", "end", "far"]
    assert found["results_far"][-1] == "kind"
    timeline.close()


def test_a_database_of_a_build_between_releases_is_upgraded(old, execute, database_url):
    # given a database to which such a build has added the columns that it lacked
    execute("ALTER TABLE results ADD COLUMN warning TEXT")
    execute("ALTER TABLE results ADD COLUMN stale BOOLEAN")

    timeline = Timeline(database_url, upgrade=True)

    check_old_results(timeline)
    timeline.close()


def test_programs_that_do_not_upgrade_say_who_does(old, engine, database_url):
    with pytest.raises(StreamerError, match="streamer record") as caught:
        Timeline(database_url)
    assert caught.value.code is ErrorCode.DATABASE_UNAVAILABLE
    assert version(engine) == "0001"
    assert count_results(database_url) == 5  # what `streamer doctor` shows


def test_a_database_of_a_newer_release_is_refused(execute, database_url):
    Timeline(database_url).close()
    execute("UPDATE alembic_version SET version_num = '9999'")

    for upgrade in (False, True):
        with pytest.raises(StreamerError, match=r"9999.*upgrade nvila-streamer") as caught:
            Timeline(database_url, upgrade=upgrade)
        assert caught.value.code is ErrorCode.DATABASE_UNAVAILABLE


def test_programs_that_start_together_upgrade_once(old, engine, database_url):
    # when many open the database at the same moment
    many = 6
    start = threading.Barrier(many)

    def opened(_: int) -> Timeline:
        start.wait()
        return Timeline(database_url, upgrade=True)

    with ThreadPoolExecutor(many) as pool:
        timelines = list(pool.map(opened, range(many)))

    for timeline in timelines:
        check_old_results(timeline)
        timeline.close()
    assert version(engine) == schema.HEAD


def test_a_step_that_fails_leaves_the_database_as_it_was(
    old, engine, database_url, tmp_path, monkeypatch
):
    # given a release whose last step fails halfway
    folder = tmp_path / "migrations"
    shutil.copytree(schema._MIGRATIONS, folder)
    (folder / "versions" / "9998_broken.py").write_text(
        "from alembic import op\n"
        f"revision, down_revision = '9998', '{schema.HEAD}'\n"
        "def upgrade():\n"
        "    op.execute('CREATE TABLE half (a INTEGER)')\n"
        "    op.execute('SELECT * FROM nowhere')\n"
    )
    monkeypatch.setattr(schema, "_MIGRATIONS", folder)
    monkeypatch.setattr(schema, "HEAD", "9998")

    with pytest.raises(StreamerError, match="nowhere") as caught:
        Timeline(database_url, upgrade=True)

    assert caught.value.code is ErrorCode.DATABASE_UNAVAILABLE
    inspector = sqlalchemy.inspect(engine)
    assert inspector.get_table_names() == ["results"]
    assert "stale" not in {each["name"] for each in inspector.get_columns("results")}
    assert count_results(database_url) == 5


def test_a_program_without_steps_to_run_does_not_import_alembic(tmp_path):
    # given a database that does not exist yet
    url = f"sqlite:///{tmp_path / 'timeline.db'}"
    code = (
        "import sys; from streamer.timeline.results import Timeline;"
        "Timeline(sys.argv[1]).close(); print('alembic' in sys.modules)"
    )

    run = subprocess.run(
        [sys.executable, "-c", code, url], capture_output=True, text=True, timeout=60, check=True
    )

    assert run.stdout.strip() == "False"
