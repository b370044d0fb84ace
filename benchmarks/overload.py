"""Ask more than a model worker can answer, and print the ledger: first as much as it can, then ten
times as many queries.

    python benchmarks/overload.py [--seconds S] [--json]

The queue, its doors and the worker are those of the service; in place of a model a stand-in needs
0.8 s for each request, 16 at once: 20 requests a second. Beside the queries ten watches have a
window of 2 s each, and a recording is read as fast as its clips are answered.
"""

import argparse
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from report import percentiles, publish

from streamer.connections import connect
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.timestamp import utc_now
from streamer.errors import StreamerError
from streamer.jobs import CLIP_JOB, Jobs, owner_of
from streamer.local.redis_server import EmbeddedServer
from streamer.models import CLIP_QUEUES
from streamer.results import Results
from streamer.settings import Settings
from workers.rq.thread_worker import ThreadWorker

SLOTS, SECONDS_EACH = 16, 0.8
WATCHES, WINDOW = 10, 2.0
SUSTAINABLE, FACTOR = 10.0, 10
"""Queries a second beside the rest, and how many times as many are too many."""


def request(kind: RequestKind, owner: str) -> ClipRequest:
    """Return a request without frames; `owner` names its watch or recording."""
    now = utc_now()
    watch = owner if kind is RequestKind.WATCH else None
    return ClipRequest(
        kind=kind,
        stream_id=owner,
        stream_name=owner,
        watch_id=watch,
        start=now,
        end=now,
        prompt="What?",
        frames=[],
    )


class Phase:
    """Counts what becomes of the requests of one phase."""

    def __init__(self) -> None:
        self.accepted = self.refused = 0
        self.waits: list[float] = []
        self.answers: Counter[str] = Counter()

    def note(self, asked: ClipRequest) -> None:
        """Note an answer."""
        self.answers[asked.watch_id or asked.kind.value] += 1
        if asked.kind is RequestKind.QUERY:
            self.waits.append(time.time() - asked.created_at.timestamp())

    def row(self, name: str, seconds: float) -> list[Any]:
        """Return a row of the table."""
        p50, p95 = percentiles(self.waits, 50, 95)
        captions = [self.answers[f"watch{number}"] for number in range(WATCHES)]
        return [
            name,
            self.accepted,
            len(self.waits),
            self.refused,
            p50,
            p95,
            f"{min(captions)} to {max(captions)}",
            round(self.answers["file"] / seconds * 60),
        ]


def run(jobs: Jobs, phase: Phase, seconds: float, rate: float, most: int) -> None:
    """Ask for some seconds, then wait until every query that was accepted is answered."""
    began = time.monotonic()
    asked, next_window = 0, [began + WINDOW * n / WATCHES for n in range(WATCHES)]
    while (now := time.monotonic()) < began + seconds:
        while asked < (now - began) * rate:
            asked += 1
            try:
                jobs.submit(request(RequestKind.QUERY, "yard"))
                phase.accepted += 1
            except StreamerError:
                phase.refused += 1
        for number, due in enumerate(next_window):
            if now >= due:
                next_window[number] += WINDOW
                jobs.submit_newest(request(RequestKind.WATCH, f"watch{number}"), most)
        if jobs.in_flight("film") < most:
            jobs.submit(request(RequestKind.FILE, "film"))
        time.sleep(0.01)
    while len(phase.waits) < phase.accepted:
        time.sleep(0.05)


def main() -> None:
    """Print the ledger."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each of the two phases")
    parser.add_argument("--json", action="store_true", help="print JSON")
    seconds = parser.parse_args().seconds
    current = Phase()
    rows = []
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(Path(folder), persistent=False, max_memory=256 << 20) as server,
        connect(server.url) as client,
    ):
        settings = Settings(redis_url=server.url)
        jobs, results = Jobs(client, settings), Results(client, settings)

        def answer(stored: dict[str, Any]) -> None:
            asked = ClipRequest.model_validate(stored)
            time.sleep(SECONDS_EACH)
            results.publish(Result.answering(asked, text="yes"), owner_id=owner_of(asked))
            current.note(asked)

        stopping = threading.Event()
        worker = ThreadWorker(
            CLIP_QUEUES,
            client,
            slots=SLOTS,
            functions={CLIP_JOB: answer},
            stopping=stopping,
            lease=12.0,
            on_failed=lambda *_: None,
        )
        thread = threading.Thread(target=worker.work)
        thread.start()
        for name, factor in (("sustainable", 1), ("ten times the queries", FACTOR)):
            current = Phase()
            run(jobs, current, seconds, SUSTAINABLE * factor, settings.max_pending_clips)
            rows.append(current.row(name, seconds))
        stopping.set()
        thread.join()
    header = [
        "load",
        "accepted",
        "answered",
        "refused",
        "p50 s",
        "p95 s",
        "captions of a watch",
        "clips of the recording a minute",
    ]
    publish({"rows": rows}, header, rows)


if __name__ == "__main__":
    main()
