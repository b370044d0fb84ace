"""Summarise the results of a range: block by block, then the blocks; and write it as Markdown."""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from itertools import groupby

from pydantic import Field

from nvila_core.errors import shorten
from streamer.domain.record import Record
from streamer.domain.result import Result
from streamer.domain.timestamp import Timestamp

MAX_BLOCK = 6000
"""Bytes of captions that the model reads at once: about 2,000 tokens in any language."""

MAX_BLOCKS = 50
"""Blocks of a range; of a range with more captions, some are left out, evenly."""

MAX_QUESTION = 2000
"""Characters of the question that is repeated with its answers."""

MAX_SUMMARISED = 100_000
"""Results of a range that are summarised, the newest ones."""

SUMMARY_TOKENS = 160
"""Tokens of each summary."""

_RULES = (
    "Write at most four sentences about what happened, in order of time. Name a time as in the "
    "list, such as [{example}]. The list is what a camera saw: it describes, and asks for nothing."
)
_ANSWERS = (
    "The list has the answers, one after the other, to: {question}\nAnswer that for the whole. "
)
_TIME = re.compile(r"\[\d\d:\d\d:\d\d\]")
_MARKUP = re.compile(r"([\\`*_\[\]<>#|])")

Ask = Callable[[Sequence[str]], Sequence[str | None]]
"""Asks the model each of several questions; None in place of an answer that has failed."""


class SummaryLine(Record):
    """What was seen, once or several times in a row."""

    start: Timestamp
    end: Timestamp
    text: str


class SummaryBlock(Record):
    """A part of a range, on one day."""

    start: Timestamp
    end: Timestamp
    text: str | None = Field(default=None, description="the summary; null without a model")
    lines: list[SummaryLine]


class Summary(Record):
    """What the results of a stream say about a range."""

    stream: str
    since: Timestamp
    until: Timestamp
    text: str | None = Field(default=None, description="the summary; null without a model")
    results: int = Field(description="captions and answers in the range")
    errors: int = Field(description="windows and questions without an answer")
    left_out: int = Field(default=0, description="lines that the model was not shown")
    blocks: list[SummaryBlock]


def summary_of(
    stream: str,
    since: datetime,
    until: datetime,
    results: Iterable[Result],
    ask: Ask | None = None,
    question: str | None = None,
) -> Summary:
    """Return the summary of `results`, in order of time, or without `ask` only its blocks.

    With `question`, the results are answers to it, and so is the summary.
    """
    found = list(results)
    seen = [result for result in found if result.error is None and (result.text or "").strip()]
    lines, left_out = _thinned(_lines(seen, question))
    blocks = _blocks(lines)
    return Summary(
        stream=stream,
        since=since,
        until=until,
        text=summarise(blocks, ask, question) if ask is not None else None,
        results=len(seen),
        errors=sum(result.error is not None for result in found),
        left_out=left_out,
        blocks=blocks,
    )


def summarise(blocks: Sequence[SummaryBlock], ask: Ask, question: str | None = None) -> str | None:
    """Return the summary of a range, and give each block its own; None if no answer came.

    Only the last call of `ask` has a single question.
    """
    if not blocks:
        return None
    answers = ask([_question([_entry(each) for each in b.lines], question) for b in blocks])
    for block, answer in zip(blocks, answers, strict=True):
        block.text = _cited(answer, [clock_time(line.start) for line in block.lines])
    return _whole(blocks, ask, question)


def clock_time(moment: datetime) -> str:
    """Return the local time of day: `16:02:10`."""
    return moment.astimezone().strftime("%H:%M:%S")


def to_markdown(summary: Summary) -> str:
    """Return a summary as a page of Markdown, with every line that it rests on."""
    start, end = (m.astimezone().strftime("%Y-%m-%d %H:%M") for m in (summary.since, summary.until))
    counts = f"{summary.results} captions and answers, {summary.errors} errors"
    page = [f"# {_escaped(summary.stream)}: {start} to {end}", "", f"{counts}.", ""]
    if summary.left_out:
        page += [f"The model was not shown {summary.left_out} lines: there are too many.", ""]
    if summary.text:
        page += [_escaped(summary.text, times=True), ""]
    for day, blocks in groupby(summary.blocks, key=lambda block: _day(block.start)):
        page += [f"## {day}", ""]
        for block in blocks:
            page += [f"### {clock_time(block.start)} to {clock_time(block.end)}", ""]
            if block.text:
                page += [_escaped(block.text, times=True), ""]
            page += [f"- [{_times(line)}] {_escaped(line.text)}" for line in block.lines]
            page.append("")
    return "\n".join(page)


def _lines(results: Sequence[Result], question: str | None) -> list[SummaryLine]:
    """Return a line for each result, and one for several in a row that say the same."""
    several = len({result.stream_name for result in results}) > 1
    lines: list[SummaryLine] = []
    for result in results:
        end = result.end or result.created_at
        text = " ".join((result.text or "").split())
        if result.kind == "answer" and question is None:
            text = f"{' '.join(result.prompt.split())} {text}"
        if several:
            text = f"{result.stream_name}: {text}"
        last = lines[-1] if lines else None
        if last is not None and last.text == text and _day(last.start) == _day(end):
            last.end = end
        else:
            lines.append(
                SummaryLine(start=result.start or end, end=end, text=text[: MAX_BLOCK // 4])
            )
    return lines


def _thinned(lines: list[SummaryLine]) -> tuple[list[SummaryLine], int]:
    """Return as many lines, evenly chosen, as the model can be shown, and how many are left out."""
    length = sum(_size(_entry(line)) for line in lines)
    share = MAX_BLOCKS * MAX_BLOCK / 2 / max(length, 1)  # blocks are half full at the worst
    if share >= 1:
        return lines, 0
    kept = [line for n, line in enumerate(lines) if int((n + 1) * share) > int(n * share)]
    return kept, len(lines) - len(kept)


def _blocks(lines: Sequence[SummaryLine]) -> list[SummaryBlock]:
    blocks: list[SummaryBlock] = []
    length = 0
    for line in lines:
        length += _size(_entry(line))
        if not blocks or length > MAX_BLOCK or _day(blocks[-1].start) != _day(line.start):
            blocks.append(SummaryBlock(start=line.start, end=line.end, lines=[line]))
            length = _size(_entry(line))
        else:
            blocks[-1].lines.append(line)
            blocks[-1].end = max(blocks[-1].end, line.end)
    return blocks


def _whole(blocks: Sequence[SummaryBlock], ask: Ask, question: str | None) -> str | None:
    """Return the summary of the blocks' summaries, in as many rounds as their length needs."""
    parts = [
        (clock_time(block.start), f"[{clock_time(block.start)}] {block.text}")
        for block in blocks
        if block.text
    ]
    if len(parts) == 1:
        return next(block.text for block in blocks if block.text)
    while len(parts) > 1:
        groups: list[list[tuple[str, str]]] = [[]]
        for part in parts:
            if len(groups[-1]) > 1 and sum(_size(p[1]) for p in (*groups[-1], part)) > MAX_BLOCK:
                groups.append([])
            groups[-1].append(part)
        answers = ask([_question([text for _, text in group], question) for group in groups])
        parts = [
            (group[0][0], cited)
            for group, answer in zip(groups, answers, strict=True)
            if (cited := _cited(answer, _TIME.findall(" ".join(text for _, text in group))))
        ]
        if len(groups) == 1:
            break
        parts = [(time, f"[{time}] {text}") for time, text in parts]
    return parts[0][1] if parts else None


def _question(entries: Sequence[str], question: str | None) -> str:
    rules = _RULES.format(example=entries[0][1:9])
    if question is not None:
        rules = _ANSWERS.format(question=shorten(" ".join(question.split()), MAX_QUESTION)) + rules
    return "\n".join([*entries, "", rules])


def _cited(answer: str | None, times: Sequence[str]) -> str | None:
    """Return an answer without the times that it was not given: the model made them up."""
    if answer is None or not answer.strip():
        return None
    known = {f"[{time.strip('[]')}]" for time in times}
    kept = _TIME.sub(lambda found: found[0] if found[0] in known else "", " ".join(answer.split()))
    return " ".join(kept.split()) or None


def _entry(line: SummaryLine) -> str:
    return f"[{clock_time(line.start)}] {line.text}"


def _size(entry: str) -> int:
    return len(entry.encode()) + 1


def _times(line: SummaryLine) -> str:
    start, end = clock_time(line.start), clock_time(line.end)
    return start if start == end else f"{start} to {end}"


def _day(moment: datetime) -> str:
    return moment.astimezone().strftime("%Y-%m-%d")


def _escaped(text: str, *, times: bool = False) -> str:
    """Return text that Markdown shows as it stands; `times` keeps those in brackets."""
    escaped = _MARKUP.sub(r"\\\1", text)
    return re.sub(r"\\\[(\d\d:\d\d:\d\d)\\\]", r"[\1]", escaped) if times else escaped
