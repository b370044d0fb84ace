import io
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from streamer.domain.error_info import ErrorInfo
from streamer.domain.result import Result
from streamer.domain.timestamp import utc_now
from streamer.errors import ErrorCode
from streamer.terminal import (
    age,
    answer_text,
    offset,
    plain,
    print_hanging,
    result_parts,
    time_of_day,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "00:00"), (4, "00:04"), (59.96, "01:00"), (61.5, "01:01.5"), (3723, "1:02:03")],
)
def test_offset(seconds: float, text: str) -> None:
    assert offset(seconds) == text


@pytest.mark.parametrize(
    ("ago", "text"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (172800, "2 d"), (-5, "0 s")],
)
def test_age(ago: float, text: str) -> None:
    assert age(utc_now() - timedelta(seconds=ago)) == text


def test_no_moment() -> None:
    assert age(None) == time_of_day(None) == "-"


def test_time_of_day_shows_the_date_of_other_days() -> None:
    assert len(time_of_day(utc_now())) == 8
    assert len(time_of_day(utc_now() - timedelta(days=3))) == 19


def make(**fields: object) -> Result:
    common = {"request_id": "r", "kind": "caption", "stream_id": "s", "stream_name": "door"}
    return Result(**{**common, "prompt": "?", "end": utc_now(), **fields})


def line(result: Result, *, costs: bool = False) -> str:
    return Text.assemble(*result_parts(result, costs=costs)).plain


def test_what_a_model_says_cannot_drive_the_terminal() -> None:
    assert plain("\x1b[31mred\x1b[0m\nline\ttab\x07") == " [31mred [0m line tab "
    evil = make(text="\x1b]0;owned\x07[bold]x[/bold]", stream_name="\x1b[2J")
    shown = line(evil)
    assert "\x1b" not in shown
    assert "[bold]x[/bold]" in shown, "what looks like markup is text"


def test_lines() -> None:
    caption = make(text="A red car.", tiles=1, vision_tokens=121, total_ms=83.4)
    assert line(caption).endswith(" A red car."), "costs are shown on demand"
    spent = "A red car.  1 tile · 121 vision tokens · 83 ms"
    assert line(caption, costs=True).endswith(spent)
    recorded = make(text="A box.", data={"media_start": 4.0, "media_end": 8.0})
    assert line(recorded).startswith("00:04-00:08 ")
    answer = make(kind="answer", prompt="How many?", text="Two.")
    assert "How many? Two." in line(answer)
    assert answer_text(make(text=" ")) == "(empty answer)"
    error = ErrorInfo(code=ErrorCode.MODEL_FAILED, message="It broke.")
    failed = make(kind="error", error=error)
    assert "MODEL_FAILED: It broke." in line(failed)


WORDS = st.lists(st.text("abcdefghijklmnop", min_size=1, max_size=12), min_size=1, max_size=40)


def printed(width: int, head: str, body: str, *, terminal: bool = True) -> list[str]:
    file = io.StringIO()
    out = Console(file=file, width=width, force_terminal=terminal, color_system=None)
    print_hanging(out, Text(head), Text(body))
    return file.getvalue().splitlines()


@given(WORDS, st.text("xyz", max_size=64), st.integers(40, 120))
def test_long_lines_wrap_between_words_below_their_beginning(
    words: list[str], name: str, width: int
) -> None:
    lines = printed(width, f"{name}  ", " ".join(words))
    assert all(len(line) <= max(width, len(name) + 2) for line in lines)
    assert " ".join(lines).split() == [*name.split(), *words]
    assert lines[0].startswith(name), "the head is whole"
    column = len(lines[-1]) - len(lines[-1].lstrip())
    assert len(lines) == 1 or column in (2, len(name) + 2)


@given(WORDS)
def test_what_is_not_for_a_terminal_is_one_line(words: list[str]) -> None:
    assert printed(80, "head ", " ".join(words), terminal=False) == [f"head {' '.join(words)}"]


@pytest.mark.parametrize("width", [40, 80])
def test_a_url_is_never_broken(width: int) -> None:
    url = "rtsp://192.0.2.1:8554/" + "/".join(["a-long-folder"] * 12) + "?channel=1&subtype=0"
    assert sum(url in line for line in printed(width, "door  ", url)) == 1
    lines = printed(width, "door  ", f"There is no such path at {url} : check the address.")
    assert sum(url in line for line in lines) == 1
    assert all(line.startswith(("door  ", "      ")) for line in lines)
    # other words that are too long are broken: some languages have no spaces
    assert max(map(len, printed(width, "door  ", "word" * 100))) <= width
