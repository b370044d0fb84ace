"""Measure how long each filter of the timeline takes, and how many bytes a result takes.

    .venv/bin/python benchmarks/timeline.py [--rows 1000000] [--database URL [--filled]]
        [--rounds 20] [--json]

The results are those of 100 cameras that are asked every ten seconds, with a plan of eight frames;
one in fifty is an answer, an error or about the past, and one in 10,000 has the word that is looked
for. The first 50,000 are recorded, the others copied from them by the database. Without
`--database` the timeline is an SQLite file in a temporary folder. `--filled` measures a database
again that an earlier run has filled with as many results. Each filter is asked `--rounds` times
for a page of 100, by other cameras and times; the table shows median and p95, and the same of the
processor time: on a busy machine that is what counts. It is that of this program and, if
PostgreSQL runs on this Linux machine too, of the process that serves it.
With the extra `search`, every result gets the vector of one of a thousand texts, a little changed,
and search by meaning is measured too: the first one reads all vectors into memory.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from report import publish
from sqlalchemy import Column, ColumnElement, Connection, Insert, Select, func, select, text

from streamer.domain.frame import FrameResolution
from streamer.domain.result import Result
from streamer.errors import StreamerError
from streamer.timeline.results import Timeline
from streamer.timeline.search_extra import require_search
from streamer.timeline.tables import UtcDateTime, result_vectors, results

CAMERAS = 100
RESULTS_A_SECOND = 10
BATCH = 1000
RECORDED = 50_000
"""Results that are made and recorded one by one; the rest are copies of them, with later times."""
START = datetime(2026, 1, 1, tzinfo=UTC)
SEED = 2_000_000_107
TEXTS = 1000
FIGURES = ("ms", "p95_ms", "cpu_ms", "cpu_p95_ms")
SINGLE = ("record_a_row", "encode_text", "first_meaning")
WORDS = ["a", "person", "walks", "past", "the", "gate", "two", "cars", "one", "red", "bus", "door"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="results in the timeline")
    parser.add_argument("--rounds", type=int, default=20, help="times that each filter is asked")
    parser.add_argument("--database", help="address of an empty database")
    parser.add_argument("--filled", action="store_true", help="an earlier run filled the database")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = args.database or f"sqlite:///{Path(folder) / 'timeline.db'}"
        timeline = Timeline(url, time_limit=600.0)  # to fill it; each filter is timed
        found = {} if args.filled else fill(timeline, args.rows)
        found |= measure(timeline, args.rows, args.rounds)
        names = [name.removesuffix("_p95_ms") for name in found if name.endswith("_p95_ms")]
        names = [name for name in names if not name.endswith("_cpu")]
        publish(
            {"rows": args.rows, "database": timeline.database.dialect, **found},
            ["filter", "median ms", "p95 ms", "CPU ms, median", "p95"],
            [
                *([n, f"{found[f'{n}_ms']:.2f}", *[""] * 3] for n in SINGLE if f"{n}_ms" in found),
                ["bytes of a row", f"{found['row_bytes']:.0f}", *[""] * 3],
                *([n, *(f"{found[f'{n}_{each}']:.1f}" for each in FIGURES)] for n in names),
            ],
        )
        timeline.close()


def fill(timeline: Timeline, rows: int) -> dict[str, Any]:
    """Record the results, and copy them to later times; return how long it takes to record one."""
    began = time.perf_counter()
    recorded = min(rows, RECORDED)
    for first in range(0, recorded, BATCH):
        timeline.record([result(n) for n in range(first, min(recorded, first + BATCH))])
    took = time.perf_counter() - began
    for first in range(recorded, rows, recorded):
        copy(timeline, first, min(recorded, rows - first))
    return {"record_a_row_ms": 1000 * took / recorded}


def copy(timeline: Timeline, first: int, rows: int) -> None:
    """Copy the first `rows` results, as those from the place `first` on."""
    later = first / RESULTS_A_SECOND

    def value(column: Column[Any]) -> ColumnElement[Any]:
        if column.name == "number":
            return column + first
        if column.name in ("id", "request_id"):
            return column.concat(f"_{first}")
        if not isinstance(column.type, UtcDateTime):
            return column
        if timeline.database.dialect == "postgresql":
            return column + func.make_interval(0, 0, 0, 0, 0, 0, later)
        # SQLite counts milliseconds; the column has microseconds
        return func.strftime("%Y-%m-%d %H:%M:%f000", column, f"+{later} seconds")

    copied = select(*map(value, results.c)).where(results.c.number <= rows)
    insert = results.insert().from_select([column.name for column in results.c], copied)
    timeline.database.write(partial(run, insert))


def run(statement: Insert, connection: Connection) -> None:
    """Execute a statement."""
    connection.execute(statement)


def all_of(statement: Select[Any], connection: Connection) -> list[Any]:
    """Return the first column of all rows."""
    return [*connection.execute(statement).scalars()]


def measure(timeline: Timeline, rows: int, rounds: int) -> dict[str, Any]:
    """Return the figures of a filled timeline."""
    found: dict[str, Any] = {"row_bytes": size(timeline) / rows}
    for name, filters in filters_of(rows, timeline).items():
        found |= timed(name, timeline, timeline.query, filters, rounds)
    try:
        require_search()
    except StreamerError as error:
        print(f"Search by meaning is not measured: {error.message}", file=sys.stderr)
        return found
    return found | measure_meaning(timeline, rows, rounds)


def timed(
    name: str,
    timeline: Timeline,
    query: Callable[..., object],
    filters: Callable[[random.Random], dict[str, Any]],
    rounds: int,
) -> dict[str, float]:
    """Return the median and the p95 of a filter, and those of its processor time."""
    dice = random.Random(SEED)
    times, busy = [], []
    processor_time = processor_clock(timeline)
    for _ in range(rounds):
        wanted = filters(dice)
        began = time.perf_counter(), processor_time()
        query(**wanted)
        times.append(1000 * (time.perf_counter() - began[0]))
        busy.append(1000 * (processor_time() - began[1]))
    found = (median(times), quantiles(times, n=20)[-1], median(busy), quantiles(busy, n=20)[-1])
    return {f"{name}_{figure}": value for figure, value in zip(FIGURES, found, strict=True)}


def processor_clock(timeline: Timeline) -> Callable[[], float]:
    """Return a clock of the processor time of this program and of the process of PostgreSQL that
    serves it, if it runs on this machine, in seconds."""
    if timeline.database.dialect != "postgresql":
        return time.process_time
    server = timeline.database.read(partial(all_of, select(func.pg_backend_pid())))[0]
    spent = Path(f"/proc/{server}/schedstat")
    if timeline.database.engine.url.host not in ("127.0.0.1", "localhost") or not spent.exists():
        return time.process_time
    return lambda: time.process_time() + int(spent.read_text().split()[0]) / 1e9


def measure_meaning(timeline: Timeline, rows: int, rounds: int) -> dict[str, float]:
    """Give every result a vector and return the figures of search by meaning."""
    from streamer.timeline.sentences import sentence_encoder

    texts = [each.text for each in map(result, range(TEXTS)) if each.text]
    encoder = sentence_encoder()
    began = time.perf_counter()
    encoded = np.concatenate([encoder.encode(texts[n : n + 32]) for n in range(0, len(texts), 32)])
    found = {"encode_text_ms": 1000 * (time.perf_counter() - began) / len(texts)}
    if not timeline.database.read(partial(all_of, select(result_vectors.c.number).limit(1))):
        add_vectors(timeline, rows, encoded)

    def search(**wanted: Any) -> object:
        return timeline.query_by_meaning("a bus at the gate", **wanted)

    began = time.perf_counter()
    search()
    found["first_meaning_ms"] = 1000 * (time.perf_counter() - began)
    filters = filters_of(rows, timeline)
    for other in ("newest", "stream", "range"):
        name = "meaning" if other == "newest" else f"meaning_{other}"
        found |= timed(name, timeline, search, filters[other], rounds)
    return found


def add_vectors(timeline: Timeline, rows: int, encoded: Any) -> None:
    """Give every result that has a text a vector: those that were recorded one of `encoded`, a
    little changed, and the others copies of these."""
    from streamer.timeline.vector_store import VectorStore

    dice = np.random.default_rng(SEED)
    store = VectorStore(timeline.database)
    recorded = min(rows, RECORDED)
    with_text = select(results.c.number).where(results.c.text.is_not(None))
    for first in range(0, recorded, BATCH):
        some = with_text.where(results.c.number > first, results.c.number <= first + BATCH)
        numbers = timeline.database.read(partial(all_of, some))
        near = encoded[[number % len(encoded) for number in numbers]]
        store.add(numbers, near + dice.normal(0, 0.01, near.shape).astype(np.float32))
    names, columns = ["number", "signs", "vector"], result_vectors.c
    for first in range(recorded, rows, recorded):
        copied = select(columns.number + first, columns.signs, columns.vector)
        copied = copied.where(columns.number <= min(recorded, rows - first))
        insert = result_vectors.insert().from_select(names, copied.order_by(columns.number))
        timeline.database.write(partial(run, insert))


def filters_of(
    rows: int, timeline: Timeline
) -> dict[str, Callable[[random.Random], dict[str, Any]]]:
    """Return the filters, each of which makes the arguments of a query."""

    def at(dice: random.Random) -> datetime:
        return START + timedelta(seconds=dice.uniform(0, rows / RESULTS_A_SECOND))

    def camera(dice: random.Random) -> str:
        return f"camera-{dice.randrange(CAMERAS)}"

    def cursor(dice: random.Random) -> str | None:
        return timeline.query(until=at(dice), limit=1).next_cursor

    def between(dice: random.Random) -> dict[str, Any]:
        since = at(dice)
        return {"since": since, "until": since + timedelta(hours=1)}

    return {
        "newest": lambda dice: {},
        "stream": lambda dice: {"stream": camera(dice)},
        "stream_id": lambda dice: {"stream": f"str_{dice.randrange(CAMERAS)}"},
        "stream_since": lambda dice: {"stream": camera(dice), "since": at(dice)},
        "since": lambda dice: {"since": at(dice)},
        "until": lambda dice: {"until": at(dice)},
        "range": between,
        "stream_range": lambda dice: {"stream": camera(dice), **between(dice)},
        "kind": lambda dice: {"kind": "error"},
        "kind_none": lambda dice: {"kind": "alert"},
        "stream_kind": lambda dice: {"stream": camera(dice), "kind": "error"},
        "cursor": lambda dice: {"cursor": cursor(dice)},
        "stream_cursor": lambda dice: {"stream": camera(dice), "cursor": cursor(dice)},
        "rare_word": lambda dice: {"q": "giraffe"},
        "no_word": lambda dice: {"q": "elephant"},
        "common_word": lambda dice: {"q": "cars"},
        "phrase": lambda dice: {"q": '"red bus"'},
        "beginning": lambda dice: {"q": "gir*"},
        "word_stream": lambda dice: {"q": "giraffe", "stream": camera(dice)},
        "common_word_stream": lambda dice: {"q": "cars", "stream": camera(dice)},
        "word_range": lambda dice: {"q": "giraffe", **between(dice)},
        "common_word_range": lambda dice: {"q": "cars", **between(dice)},
        "common_word_until": lambda dice: {"q": "cars", "until": at(dice)},
    }


def result(number: int) -> Result:
    """Return the result with this number: ten a second, of one camera after the other."""
    dice = random.Random(number)
    made = START + timedelta(seconds=number / RESULTS_A_SECOND)
    start = made - timedelta(seconds=dice.uniform(11, 13))
    kind = "caption"
    if dice.random() < 0.02:
        kind = dice.choice(["answer", "error"])
        if kind == "answer":
            start -= timedelta(hours=dice.uniform(0, 24))
    words = dice.choices(WORDS, k=20) + (["giraffe"] if number % 10_000 == 77 else [])
    camera = number % CAMERAS
    plan = [
        FrameResolution(grid=(dice.randint(1, 3), 1), reason=f"new detail ({dice.randint(0, 40)})")
        for _ in range(8)
    ]
    return Result(
        request_id=f"req_{number:016x}",
        kind=kind,
        stream_id=f"str_{camera}",
        stream_name=f"camera-{camera}",
        watch_id=f"wch_{camera:016x}",
        start=start,
        end=start + timedelta(seconds=10),
        created_at=made,
        prompt="Describe the scene.",
        text=None if kind == "error" else " ".join(words),
        finish_reason="stop",
        model="demo",
        frames=8,
        frames_from=start,
        frames_to=start + timedelta(seconds=9),
        frame_times=[start + timedelta(seconds=second) for second in range(8)],
        newest_frame_age=1.25,
        tiles=9,
        plan=plan,
        vision_tokens=1089,
        prompt_tokens=1120,
        completion_tokens=30,
        decode_ms=1.25,
        queue_ms=2.5,
        encode_ms=3.75,
        generate_ms=4.125,
        total_ms=1260.0,
    )


def size(timeline: Timeline) -> int:
    """Return the bytes of the database, its indices included."""
    statement = (
        "SELECT pg_total_relation_size('results')"
        if timeline.database.dialect == "postgresql"
        else "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
    )
    return int(
        timeline.database.read(lambda connection: connection.execute(text(statement)).scalar_one())
    )


if __name__ == "__main__":
    main()
