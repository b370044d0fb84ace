"""A range in a few sentences: its blocks, what the model is asked, and the report."""

import re
from datetime import UTC, datetime, timedelta

from streamer.domain import summaries
from streamer.domain.error_info import ErrorInfo
from streamer.domain.result import Result
from streamer.domain.summaries import MAX_BLOCK, MAX_BLOCKS, clock_time, to_markdown
from streamer.errors import ErrorCode

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def result(number, text="", seconds=10, **fields):
    end = NOON + timedelta(seconds=seconds * (number + 1))
    common = {
        "request_id": f"req_{number}",
        "kind": "caption",
        "stream_id": "str_1",
        "stream_name": "lobby",
        "start": end - timedelta(seconds=10),
        "end": end,
        "created_at": end + timedelta(seconds=1),
        "prompt": "What is there?",
        "text": text or f"Number {number} walks past.",
    }
    return Result(**common | fields)


class Model:
    """Cites the first time of what it is given, and one that it makes up."""

    def __init__(self, failing=()):
        self.questions = []
        self._failing = failing

    def __call__(self, questions):
        first = len(self.questions)
        self.questions += questions
        return [
            None if first + n in self._failing else f"At {text[:10]} and [99:99:99] it began."
            for n, text in enumerate(questions)
        ]


def summary_of(results, ask=None):
    return summaries.summary_of("lobby", NOON, NOON + timedelta(days=1), results, ask)


def test_captions_that_say_the_same_in_a_row_are_one_line():
    summary = summary_of([result(0, "A car."), result(1, "A car."), result(2), result(3, "A car.")])

    (block,) = summary.blocks
    assert [line.text for line in block.lines] == ["A car.", "Number 2 walks past.", "A car."]
    assert block.lines[0].end - block.lines[0].start == timedelta(seconds=20)
    assert summary.text is None
    assert (summary.results, summary.errors) == (4, 0)


def test_errors_are_counted_and_empty_answers_left_out():
    error = ErrorInfo(code=ErrorCode.TIMEOUT, message="Late.")

    summary = summary_of([result(0, " "), result(1, kind="error", text=None, error=error)])

    assert (summary.results, summary.errors, summary.blocks) == (0, 1, [])


def test_a_short_range_is_one_question_whose_times_are_those_of_captions():
    model = Model()

    summary = summary_of([result(n) for n in range(5)], model)

    (question,) = model.questions
    times = re.findall(r"^\[(\d\d:\d\d:\d\d)\] Number", question, re.M)
    assert times == [clock_time(NOON + timedelta(seconds=10 * n)) for n in range(5)]
    # what the model made up is not cited
    assert summary.text == f"At [{clock_time(NOON)}] and it began."
    assert summary.blocks[0].text == summary.text


def test_a_long_range_is_summarised_block_by_block_and_then_as_a_whole():
    model = Model()

    summary = summary_of([result(n, f"{n} " + "word " * 40) for n in range(200)], model)

    assert len(summary.blocks) > 2
    assert all(len(question) < MAX_BLOCK + 400 for question in model.questions)
    assert len(model.questions) == len(summary.blocks) + 1
    assert [block.text for block in summary.blocks] == [
        f"At [{clock_time(block.start)}] and it began." for block in summary.blocks
    ]
    whole = model.questions[-1]
    assert all(block.text in whole for block in summary.blocks)
    assert summary.text == f"At [{clock_time(NOON)}] and it began."


def test_any_number_of_captions_is_a_bounded_number_of_questions():
    model = Model()

    summary = summary_of([result(n, f"{n} " + "word " * 80, 1) for n in range(4000)], model)

    assert len(summary.blocks) <= MAX_BLOCKS + 1
    assert summary.left_out > 0
    shown = sum(len(block.lines) for block in summary.blocks)
    assert shown + summary.left_out == 4000


def test_a_block_without_an_answer_keeps_its_captions():
    model = Model(failing={0})

    summary = summary_of([result(n, f"{n} " + "word " * 40) for n in range(60)], model)

    assert summary.blocks[0].text is None
    assert summary.blocks[1].text is not None
    assert summary.text is not None
    assert "0 word word" in to_markdown(summary)


def test_a_block_ends_with_its_day():
    summary = summary_of([result(n, seconds=6 * 3600) for n in range(8)])

    days = [{line.start.astimezone().date() for line in block.lines} for block in summary.blocks]
    assert len(days) > 1
    assert all(len(day) == 1 for day in days)


def test_the_report_has_every_caption_with_its_time_and_no_markup_of_theirs():
    summary = summary_of([result(0, "A *red* <b>car</b> [x](http://y) # 1"), result(1)], Model())

    page = to_markdown(summary)

    at = clock_time(NOON)
    lines = page.splitlines()
    assert lines[0].startswith("# lobby: 2026-11-2")
    assert f"At [{at}] and it began." in lines
    (caption,) = (line for line in lines if "red" in line)
    assert caption.startswith(f"- [{at} to ")
    assert r"A \*red\* \<b\>car\</b\> \[x\](http://y) \# 1" in caption
