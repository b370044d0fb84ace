"""A question as one record: its times, its limits, and what is refused."""

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from streamer.domain.question import Question
from streamer.errors import ErrorCode, StreamerError
from streamer.validation import validated

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def test_without_times_it_is_about_now() -> None:
    question = Question(prompt="Who is there?")
    assert (question.since, question.until) == (None, None)


@pytest.mark.parametrize("since", ["2026-01-31T09:30:00Z", "2026-01-31T10:30:00+01:00", START])
def test_a_range_ends_now_unless_it_says_otherwise(since: Any) -> None:
    question = Question(prompt="?", since=since)
    assert question.since == START
    assert question.until is not None
    assert abs((datetime.now(UTC) - question.until).total_seconds()) < 60


def test_both_ends_of_a_range_are_counted_from_the_same_now() -> None:
    question = Question(prompt="?", since="-10m", until="-5m")
    assert question.since is not None
    assert question.until is not None
    assert question.until - question.since == timedelta(minutes=5)


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"prompt": " \n"}, ErrorCode.PROMPT_EMPTY, "prompt is empty"),
        ({"since": "soon"}, ErrorCode.INVALID_REQUEST, "'soon' is not a time"),
        ({"until": "-1m"}, ErrorCode.INVALID_REQUEST, "no start: give since"),
        ({"since": "-1m", "until": "-1m"}, ErrorCode.INVALID_REQUEST, "range is empty"),
        ({"since": "-1m", "until": "-2m"}, ErrorCode.INVALID_REQUEST, "range is empty"),
        ({"since": datetime(2026, 1, 31)}, ErrorCode.INVALID_REQUEST, "'since'"),
        ({"since": 5}, ErrorCode.INVALID_REQUEST, "'since'"),
        ({"max_frames": 0}, ErrorCode.INVALID_REQUEST, "'max_frames'"),
        ({"max_frames": 257}, ErrorCode.INVALID_REQUEST, "'max_frames'"),
        ({"max_tokens": 4097}, ErrorCode.INVALID_REQUEST, "'max_tokens'"),
        ({"colour": "red"}, ErrorCode.INVALID_REQUEST, "'colour'"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_sentence(
    fields: dict[str, Any], code: ErrorCode, words: str
) -> None:
    with pytest.raises(StreamerError) as caught:
        validated(Question, **{"prompt": "?"} | fields)
    assert caught.value.code is code
    assert words in caught.value.message
    assert "\n" not in caught.value.message


def test_what_is_no_object_is_refused() -> None:
    with pytest.raises(ValidationError):
        Question.model_validate(["?"])


def test_the_schema_takes_times_as_text() -> None:
    fields = Question.model_json_schema()["properties"]
    for name in ("since", "until"):
        absolute, relative, absent = fields[name]["anyOf"]
        assert absolute == {"type": "string", "format": "date-time"}
        assert re.search(relative["pattern"], "-1.5h")
        assert absent == {"type": "null"}
        assert fields[name]["description"]
