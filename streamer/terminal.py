"""Format records for the terminal and as JSON Lines."""

import sys
from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel

from streamer.domain.result import Match, Result
from streamer.domain.stream import Stream, StreamCounters
from streamer.domain.timestamp import utc_now

if TYPE_CHECKING:
    from rich.console import Console, OverflowMethod
    from rich.table import Table
    from rich.text import Text

PIPE_WIDTH = 200
"""Columns if the output is not a terminal; wide enough that lines do not wrap."""


MAX_LABEL = 48
"""Characters of a question that tell a watch from others."""


INDENT = 2
"""Columns by which lines that continue are moved in."""
MIN_BODY_WIDTH = 28
"""Columns that a wrapped text needs beside its head; with less it goes below the head."""


def json_lines(records: Iterable[BaseModel]) -> None:
    """Write one JSON object per line to stdout and flush."""
    for record in records:
        sys.stdout.write(record.model_dump_json() + "\n")
    sys.stdout.flush()


def console(*, stderr: bool = False) -> "Console":
    """Make a rich console without markup, emoji or highlighting."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else PIPE_WIDTH
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, width=width)


def print_hanging(out: "Console", head: "Text", body: "Text") -> None:
    """Print `head` and `body`; on a terminal wrap `body` between words, below its own beginning.

    If the output is not a terminal, it is one line, so that programs such as grep find it whole.
    A URL is never broken: it could not be copied.
    """
    from rich.text import Text

    width = out.width - head.cell_len
    if not out.is_terminal or head.cell_len + body.cell_len <= out.width:
        out.print(head + body, soft_wrap=True)
        return
    if width < MIN_BODY_WIDTH:  # the head leaves no room: continue below it
        out.print(head, soft_wrap=True)
        head, width = Text(" " * INDENT), out.width - INDENT
    overflow: OverflowMethod = "ignore" if "://" in body.plain else "fold"
    for number, line in enumerate(body.wrap(out, width, overflow=overflow)):
        lead = head if number == 0 else Text(" " * head.cell_len)
        line.rstrip()
        out.print(lead + line, soft_wrap=True)


def plain(text: str) -> str:
    """Replace control characters: a model or a camera must not control the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def time_of_day(moment: datetime | None) -> str:
    """Format the local time of day, `14:03:21`, with the date if it is not today."""
    if moment is None:
        return "-"
    local = moment.astimezone()
    today = local.date() == datetime.now().astimezone().date()
    return local.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def age(moment: datetime | None) -> str:
    """Format the time since `moment`: `12 s`, `3 min`, `5 h`, `2 d`."""
    if moment is None:
        return "-"
    seconds = max(0.0, (utc_now() - moment).total_seconds())
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def offset(seconds: float) -> str:
    """Format a position in a recording: `1:02:03`, `02:03`, or `02:03.5` with tenths."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes:02d}:{tail}"


def cost(result: Result) -> str:
    """Format the cost of an answer: `13 tiles · 52 vision tokens · 84 ms`."""
    tiles = f"{result.tiles} tile{'' if result.tiles == 1 else 's'}"
    return f"{tiles} · {result.vision_tokens} vision tokens · {result.total_ms:.0f} ms"


def clips(counters: StreamCounters) -> str:
    """Format the number of clips submitted, and of those dropped because the model was behind."""
    dropped = f" ({counters.clips_dropped} dropped)" if counters.clips_dropped else ""
    return f"{counters.clips}{dropped}"


def answer_text(result: Result) -> str:
    """Return the text of a result, or the code and message of its error."""
    if result.error is not None:
        return f"{result.error.code}: {plain(result.error.message)}"
    return plain(result.text or "").strip() or "(empty answer)"


def seen(result: Result) -> str:
    """Format what was looked at: `at 16:04:00`, or `from 16:03:21 to 16:04:00, 16 frames`."""
    data = result.data or {}
    frames = f"{result.frames} frame{'' if result.frames == 1 else 's'}"
    if "media_start" in data and "media_end" in data:
        first, last = offset(data["media_start"]), offset(data["media_end"])
    else:
        first = time_of_day(result.frames_from or result.start)
        last = time_of_day(result.frames_to or result.end or result.created_at)
    return f"at {last}" if result.frames <= 1 else f"from {first} to {last}, {frames}"


def caveats(result: Result) -> list[str]:
    """Return, as sentences, what an answer does not rest on: old pictures, gaps and windows."""
    found = []
    if (result.data or {}).get("unknown") and result.warning is not None:
        found.append(result.warning)
    if result.stale and result.newest_frame_age is not None:
        found.append(
            f"Old picture: it was taken {result.newest_frame_age:.0f} s before the question, and "
            "nothing newer has come."
        )
    if result.gaps:
        parts = ", ".join(f"{time_of_day(g.start)} to {time_of_day(g.end)}" for g in result.gaps)
        found.append(f"No pictures: {parts}. The answer says nothing about that time.")
    return found


def span(result: Result) -> str:
    """Format the end of a result's window as clock time, or its range in a recording."""
    data = result.data or {}
    if "media_start" in data and "media_end" in data:
        return f"{offset(data['media_start'])}-{offset(data['media_end'])}"
    return time_of_day(result.end or result.created_at)


class WatchLabels:
    """Tells the watches of a stream apart: by their question and, if two ask the same, by id."""

    def __init__(self) -> None:
        self._prompts: dict[str, dict[str, str]] = {}

    def learn(self, records: Iterable[Result | Stream]) -> None:
        """Note the watches that streams have, and those that results came from."""
        for record in records:
            if isinstance(record, Result):
                if record.stream_id is not None and record.watch_id is not None:
                    watches = self._prompts.setdefault(record.stream_id, {})
                    watches[record.watch_id] = record.prompt
            else:
                watches = self._prompts.setdefault(record.id, {})
                watches |= {watch.id: watch.prompt for watch in record.watches}

    def of(self, result: Result) -> str:
        """Return the label of a result's watch; empty if its stream is known to have no other."""
        watches = self._prompts.get(result.stream_id or "", {})
        if result.watch_id is None or len({*watches, result.watch_id}) < 2:
            return ""
        same = sum(prompt == result.prompt for prompt in watches.values())
        return _short(result.prompt) + (f" ({result.watch_id})" if same > 1 else "")


def _short(text: str) -> str:
    line = " ".join(plain(text).split())
    return line if len(line) <= MAX_LABEL else line[: MAX_LABEL - 3] + "..."


def by_time(results: Iterable[Result]) -> list[Result]:
    """Sort results by the time that they are about, as `span` shows it."""
    return sorted(
        results, key=lambda r: (r.end or r.created_at, r.start or r.created_at, r.created_at)
    )


def result_parts(
    result: Result, name_width: int = 12, label: str = "", *, costs: bool = False, note: str = ""
) -> "tuple[Text, Text]":
    """Format a result: its time and stream; and the label of its watch, its text, its cost, and a
    note."""
    from rich.text import Text

    style = "red" if result.error is not None else "bold" if result.kind == "answer" else ""
    head = Text.assemble(
        (f"{span(result):<12} ", "dim"),
        (f"{plain(result.stream_name or '-'):<{name_width}} ", "cyan"),
    )
    body = Text()
    if result.kind == "answer":
        body.append(f"{plain(result.prompt)} ", "dim")
    elif label:
        body.append(f"{label}: ", "dim")
    body.append(answer_text(result), style)
    if costs and result.error is None:
        body.append(f"  {cost(result)}", "dim")
    if note:
        body.append(f"  {plain(note)}", "dim")
    for caveat in caveats(result):
        body.append(f"  {caveat}", "yellow")
    return head, body


def print_result(
    out: "Console",
    result: Result,
    name_width: int = 12,
    label: str = "",
    *,
    costs: bool = False,
    note: str = "",
) -> None:
    """Print a result: time, stream, label of its watch, text, with `costs` its cost, and `note`."""
    print_hanging(out, *result_parts(result, name_width, label, costs=costs, note=note))


def fit(match: Match) -> str:
    """Format how well a result fits a search: `similarity 0.63 · verified: yes (0.92)`."""
    parts = [] if match.similarity is None else [f"similarity {match.similarity:.2f}"]
    if match.verdict in ("yes", "no"):
        sure = "" if match.probability is None else f" ({match.probability:.2f})"
        parts.append(f"verified: {match.verdict}{sure}")
    elif match.verdict is not None:
        parts.append(match.verdict if match.reason is None else f"{match.verdict}: {match.reason}")
    return " · ".join(parts)


def table(*headers: str, right: Iterable[str] = ()) -> "Table":
    """Make an empty table; `right` names the columns to align right."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for header in headers:
        made.add_column(header, justify="right" if header in set(right) else "left")
    return made
