from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import sqlalchemy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamer.domain.error_info import ErrorInfo
from streamer.domain.frame import FrameResolution
from streamer.domain.result import Result
from streamer.errors import ErrorCode, StreamerError
from streamer.timeline.database import engine_of
from streamer.timeline.results import Timeline
from tests.streamer.timeline.conftest import NOON, result


def ids(page):
    return [r.request_id for r in page.results]


def test_a_result_comes_back_with_every_field(timeline):
    full = result(
        watch_id="wch_1",
        data={"media_start": 0.5, "nested": [1, {"a": None}]},
        finish_reason="stop",
        model="demo",
        frames=8,
        tiles=9,
        plan=[FrameResolution(grid=(4, 2), reason="most detail (22)")],
        vision_tokens=1089,
        prompt_tokens=1120,
        cached_tokens=3,
        completion_tokens=17,
        decode_ms=1.25,
        queue_ms=2.5,
        encode_ms=3.75,
        generate_ms=4.125,
        total_ms=12.0,
    )
    failed = Result(
        request_id="req_failed",
        kind="error",
        stream_id=None,
        stream_name=None,
        prompt="?",
        error=ErrorInfo(code=ErrorCode.WORKER_LOST, message="The workers died."),
    )
    assert timeline.record([full, failed]) == 2
    assert timeline.get("req_0") == full
    assert timeline.get("req_failed") == failed
    assert timeline.get("req_nobody") is None


def test_recording_twice_changes_nothing(timeline):
    results = [result(i) for i in range(3)]
    assert timeline.record(results[:2]) == 2
    assert timeline.record(results) == 1
    again = result(0, text="something else")
    assert timeline.record([again]) == 0
    assert timeline.get("req_0").text == "0 people"
    assert timeline.record([]) == 0


def test_batches_of_any_size_are_stored_by_few_statements(timeline):
    # given that the driver keeps a prepared statement for each number of rows
    sent = set()

    def note(_connection, _cursor, statement, *_rest):
        sent.add(statement)

    sqlalchemy.event.listen(timeline.database.engine, "before_cursor_execute", note)

    # when batches of 1 to 60 results are recorded
    results = iter([result(i) for i in range(60 * 61 // 2)])
    for count in range(1, 61):
        assert timeline.record([next(results) for _ in range(count)]) == count

    # then few statements have stored all of them: one for each number of rows up to 16, and one
    # more for a batch of a single row, which PostgreSQL is sent without a number
    stored = [statement for statement in sent if statement.startswith("INSERT INTO results ")]
    assert 1 < len(stored) <= 17


def test_it_survives_being_closed(timeline_url, timeline):
    timeline.record([result()])
    timeline.close()
    reopened = Timeline(timeline_url)
    assert reopened.get("req_0") is not None
    reopened.close()


def test_newest_first_page_by_page_whatever_comes_meanwhile(timeline):
    timeline.record([result(i) for i in range(25)])
    seen, cursor = [], None
    for _ in range(10):
        page = timeline.query(limit=10, cursor=cursor)
        seen += ids(page)
        timeline.record([result(100 + len(seen))])  # newer: belongs to no later page
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == [f"req_{i}" for i in reversed(range(25))]


def test_paging_through_results_of_one_moment_loses_none(timeline):
    timeline.record([result(i, created_at=NOON) for i in range(7)])
    first = timeline.query(limit=3)
    second = timeline.query(limit=3, cursor=first.next_cursor)
    third = timeline.query(limit=3, cursor=second.next_cursor)
    assert sorted(ids(first) + ids(second) + ids(third)) == [f"req_{i}" for i in range(7)]
    assert third.next_cursor is None


def test_a_full_last_page_has_no_next(timeline):
    timeline.record([result(i) for i in range(3)])
    assert timeline.query(limit=3).next_cursor is None


def test_filters(timeline):
    timeline.record(
        [
            result(0),
            result(1, stream_id="str_2", stream_name="street", kind="answer"),
            result(2, kind="error", text=None, prompt="Is the GATE open?"),
            result(3, text="a 100% red_car"),
        ]
    )
    assert ids(timeline.query(stream="street")) == ["req_1"]
    assert ids(timeline.query(stream="str_1", kind="error")) == ["req_2"]
    assert ids(timeline.query(q="gate")) == ["req_2"]
    assert ids(timeline.query(q="RED_car")) == ["req_3"]
    assert ids(timeline.query(q="100%")) == ["req_3"]
    assert ids(timeline.query(q="%")) == ["req_3"]
    assert ids(timeline.query(stream="nobody")) == []


def test_a_range_of_time_selects_by_what_was_looked_at(timeline):
    # given clips [0,10), [10,20), [20,30) and a result without a clip, created at 11 s
    timeline.record([result(i) for i in range(3)])
    timeline.record([result(9, start=None, end=None, created_at=NOON + timedelta(seconds=11))])

    def between(since, until):
        return set(
            ids(
                timeline.query(
                    since=NOON + timedelta(seconds=since), until=NOON + timedelta(seconds=until)
                )
            )
        )

    assert between(12, 15) == {"req_1"}
    assert between(11, 12) == {"req_1", "req_9"}
    assert between(5, 10) == {"req_0"}
    assert between(40, 50) == set()


def test_any_time_zone_means_the_same_moment(timeline):
    from datetime import timezone

    timeline.record([result(0)])
    elsewhere = (NOON + timedelta(seconds=5)).astimezone(timezone(timedelta(hours=9)))
    assert ids(timeline.query(since=elsewhere)) == ["req_0"]
    assert ids(timeline.query(until=elsewhere - timedelta(hours=1))) == []


def test_a_nul_character_does_no_harm(timeline):
    # given a result that nothing validated, as a program of another version may write
    damaged = result().model_copy(update={"text": "a\0b"})
    assert timeline.record([damaged]) == 1
    assert timeline.get("req_0").text == "ab"


def test_rows_of_a_newer_recorder_are_shown_as_far_as_they_can_be_read(database_url):
    # given rows with a new column, new words, new fields, and a value of a new form
    timeline = Timeline(database_url)
    timeline.record([result(i) for i in range(4)])
    engine = engine_of(database_url)
    with engine.begin() as database:
        database.exec_driver_sql("ALTER TABLE results ADD COLUMN lens TEXT")
        for number, change in enumerate(
            (
                "kind = 'sketch', lens = 'wide'",
                """error = '{"code": "LENS_CAP", "message": "Off!", "hint": 1}'""",
                """gaps = '[{"start": "2026-11-22T12:00:00Z", "end": "2026-11-22T12:00:01Z",
                "why": "dark"}]'""",
                "data = '[1, 2]'",
            )
        ):
            database.exec_driver_sql(
                f"UPDATE results SET {change} WHERE request_id = 'req_{number}'"
            )
    engine.dispose()
    # then every row is in the list
    found = {each.request_id: each for each in timeline.query().results}
    assert sorted(found) == ["req_0", "req_1", "req_2", "req_3"]
    assert found["req_0"].kind == "sketch"
    errors = [error.code for error in (found["req_1"].error, found["req_3"].error) if error]
    assert errors == ["LENS_CAP", ErrorCode.RECORD_UNREADABLE]
    assert len(found["req_2"].gaps) == 1
    assert (found["req_3"].text, found["req_3"].stream_name) == ("3 people", "yard")
    assert timeline.get("req_3") == found["req_3"]
    # and the older recorder goes on
    assert timeline.record([result(9)]) == 1
    timeline.close()


@pytest.mark.parametrize("cursor", ["x", "!!!", "e30", "WzEsMl0"])
def test_a_bad_cursor_is_the_callers_mistake(timeline, cursor):
    with pytest.raises(StreamerError, match="cursor") as caught:
        timeline.query(cursor=cursor)
    assert caught.value.code is ErrorCode.INVALID_REQUEST


def test_readers_do_not_wait_for_a_writer(timeline, timeline_url):
    # given a recorder in the middle of writing
    timeline.record([result()])
    engine = engine_of(timeline_url)
    with engine.connect().execution_options(writes=True) as writer, writer.begin():
        writer.execute(sqlalchemy.text("UPDATE results SET text = 'unfinished'"))
        # then readers see what was there before
        assert [each.text for each in timeline.query().results] == ["0 people"]
    engine.dispose()


@pytest.mark.parametrize(
    ("url", "say"),
    [
        ("nonsense", "is not a database URL"),
        ("nosuch://host/db", "is not a database URL"),
        ("sqlite:////proc/nowhere/timeline.db", "folder of the timeline cannot be created"),
        ("postgresql+psycopg://me:s3cret@127.0.0.1:1/db", "postgres|failed"),
    ],
)
def test_a_database_that_is_not_there_is_one_sentence(url, say):
    with pytest.raises(StreamerError, match=say) as caught:
        Timeline(url)
    assert caught.value.code is ErrorCode.DATABASE_UNAVAILABLE
    assert "s3cret" not in caught.value.message
    assert "\n" not in caught.value.message


def test_a_file_that_is_no_database_is_one_sentence(tmp_path):
    (tmp_path / "timeline.db").write_text("this is a text file, and a long one at that" * 100)
    with pytest.raises(StreamerError, match="not a database"):
        Timeline(f"sqlite:///{tmp_path / 'timeline.db'}")


def test_a_large_batch_is_recorded_whole(timeline):
    assert timeline.record([result(i) for i in range(1200)]) == 1200


def test_many_may_open_a_new_database_together(database_url):
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(Timeline, [database_url] * 8))
    for number, timeline in enumerate(opened):
        assert timeline.record([result(number)]) == 1
    for timeline in opened:
        timeline.close()


def test_long_fields_are_stored_in_few_bytes_and_come_back(timeline, timeline_url):
    # given a result as a quiet camera makes it
    times = [NOON + timedelta(milliseconds=1001 * number) for number in range(16)]
    quiet = [FrameResolution(grid=(1, 1), reason="unchanged (0)")] * 15
    plan = [FrameResolution(grid=(4, 2), reason="most detail (22)"), *quiet]
    made = result(plan=plan, frame_times=times, frames=16)

    timeline.record([made])

    assert timeline.get("req_0") == made
    engine = engine_of(timeline_url)
    with engine.connect() as connection:
        (stored,) = connection.execute(
            sqlalchemy.text(
                "SELECT length(cast(plan AS text)) + length(cast(frame_times AS text)) FROM results"
            )
        )
    engine.dispose()
    fields = made.model_dump_json(include={"plan", "frame_times"})
    assert stored[0] < len(fields) / 6


def test_words_phrases_and_beginnings_of_words(timeline):
    timeline.record(
        [
            result(0, text="A man/woman walks a dog.", prompt="?"),
            result(1, text="Two red cars, one blue car.", prompt="?"),
            result(2, text="A blue car; a red gate.", prompt="?"),
            result(3, text="Ein Mädchen öffnet das Tor.", prompt="?"),
            result(4, text="一辆红色的汽车停在门口", prompt="?"),
            result(5, text=None, kind="error", prompt="Is the carpet clean?"),
        ]
    )

    def found(q):
        return sorted(ids(timeline.query(q=q)))

    assert found("woman") == ["req_0"]
    assert found("car red") == ["req_1", "req_2"]
    assert found('"blue car"') == ["req_1", "req_2"]
    assert found('"red car"') == []
    assert found('"red car*"') == []
    assert found("red-car*") == ["req_1"]
    assert found("car*") == ["req_1", "req_2", "req_5"]
    assert found("CAR blue gate") == ["req_2"]
    assert found("Mädchen") == ["req_3"]
    assert found("红色的汽车") == ["req_4"]
    assert found("scar") == []


@pytest.mark.parametrize(
    "q",
    [
        *('"', '"car', '""', "' --", "a''b", "\\", " ", "*"),
        *("car OR", "NOT car", "NEAR(a b)", "text:car", "car)", "(car", "^car", "{a}"),
        *("a & b", "!car", "car:*", "<->", "a | b"),
        *("\U0001f697", "\ufb01 \u00bd \u00b2"),
    ],
)
def test_no_text_is_a_mistake(timeline, q):
    timeline.record([result(0, text="a car or not near text")])
    assert timeline.query(q=q, stream="yard", kind="caption").next_cursor is None


def test_words_with_every_other_filter_page_by_page(timeline):
    timeline.record(
        [
            result(
                number,
                text="a car" if number % 3 == 0 else "nothing",
                kind="answer" if number % 2 else "caption",
                stream_id=f"str_{number % 5}",
                stream_name=f"gate-{number % 5}",
            )
            for number in range(300)
        ]
    )

    def pages(**filters):
        seen, cursor = [], None
        while True:
            page = timeline.query(limit=7, cursor=cursor, **filters)
            seen += ids(page)
            cursor = page.next_cursor
            if cursor is None:
                return seen

    def expected(wanted):
        return [f"req_{n}" for n in reversed(range(300)) if n % 3 == 0 and wanted(n)]

    since, until = NOON + timedelta(seconds=605), NOON + timedelta(seconds=2000)
    assert pages(q="car") == expected(lambda n: True)
    assert pages(q="car", stream="gate-2") == expected(lambda n: n % 5 == 2)
    assert pages(q="car", stream="str_2") == expected(lambda n: n % 5 == 2)
    assert pages(q="car", kind="answer") == expected(lambda n: n % 2)
    assert pages(q="car", since=since, until=until) == expected(lambda n: 60 <= n < 200)
    assert pages(q="car", stream="gate-2", kind="caption", since=since) == expected(
        lambda n: n % 5 == 2 and n % 2 == 0 and n >= 60
    )


@given(
    clips=st.lists(
        st.tuples(st.integers(-400, 400), st.integers(0, 400), st.integers(-300, 400)), max_size=30
    ),
    since=st.none() | st.integers(-500, 800),
    until=st.none() | st.integers(-500, 800),
    limit=st.integers(1, 5),
    q=st.sampled_from([None, "car"]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_range_selects_the_clips_that_overlap_it(timeline, clips, since, until, limit, q):
    # given clips in minutes, long and short, made before or after what they show
    timeline.database.write(lambda c: c.execute(sqlalchemy.text("DELETE FROM results")))
    minute = timedelta(minutes=1)
    made = [
        result(
            number,
            start=NOON + start * minute,
            end=NOON + (start + length) * minute,
            created_at=NOON + (start + length + delay) * minute,
            text="a car" if number % 2 else "nothing",
        )
        for number, (start, length, delay) in enumerate(clips)
    ]
    timeline.record(made)
    # when they are read page by page
    seen, cursor = [], None
    while True:
        page = timeline.query(
            since=None if since is None else NOON + since * minute,
            until=None if until is None else NOON + until * minute,
            limit=limit,
            cursor=cursor,
            q=q,
        )
        seen += ids(page)
        cursor = page.next_cursor
        if cursor is None:
            break
    # then each that overlaps is there once, newest first
    wanted = [
        each
        for each in made
        if (since is None or each.end >= NOON + since * minute)
        and (until is None or each.start < NOON + until * minute)
        and (q is None or q in (each.text or ""))
    ]
    order = [(each.created_at if q is None else NOON, made.index(each)) for each in wanted]
    assert seen == [f"req_{number}" for _, number in sorted(order, reverse=True)]


def test_the_parts_of_summaries_are_listed_by_their_kind_only(timeline):
    # given a caption, and an answer that a summary was made of
    timeline.record([result(0, text="Number zero."), result(1, kind="summary", text="Number one.")])
    # then
    assert [each.kind for each in timeline.query().results] == ["caption"]
    assert [each.kind for each in timeline.query(q="number").results] == ["caption"]
    (part,) = timeline.query(kind="summary").results
    assert part.text == "Number one."
