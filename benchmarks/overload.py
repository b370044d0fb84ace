"""Ask more than a model worker can answer, and print the ledger: as much as it can, then ten times
as many queries, then as much as it can.

    python benchmarks/overload.py [--seconds S] [--calm S] [--json]

The queue, its doors, the worker, the plans and the recorder are those of the service; in place of a
model a stand-in needs 0.8 s for each request, 16 at once: 20 requests a second. Beside the queries
ten watches have a window of 2 s each, and a recording, whose end is planned for the last phase, is
read as fast as its clips are answered. `--seconds` is the length of the overload, `--calm` that of
each phase around it. The memory of the worker is that of this program, which asks, answers and
records.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import Any

import psutil
import redis
from report import percentiles, publish

from nvila_core.generation.completion import Completion
from nvila_core.resolution.policy import Adaptive, Budget, Measures, Plan, TilingConfig
from streamer.domain.conversation import Detail
from streamer.domain.frame import FrameRef
from streamer.domain.kinds import RequestKind
from streamer.domain.request import ClipRequest
from streamer.domain.result import Result
from streamer.domain.timestamp import utc_now
from streamer.errors import StreamerError
from streamer.local.redis_server import EmbeddedServer
from streamer.logging_setup import configure_logging
from streamer.queues.jobs import CLIP_JOB, Jobs, owner_of
from streamer.queues.models import CLIP_QUEUES
from streamer.redis_client.connections import Connections
from streamer.settings import Settings
from streamer.timeline.results import Timeline
from workers import context
from workers.gpu.clip_plan import plan_clip, worker_load
from workers.recorder.worker import Recorder
from workers.rq.thread_worker import ThreadWorker

SLOTS, SECONDS_EACH = 16, 0.8
WATCHES, WINDOW = 10, 2.0
SUSTAINABLE, FACTOR = 10.0, 10
"""Queries a second beside the rest, and how many times as many are too many."""

FRAMES, WIDTH, HEIGHT, DETAIL = 4, 1920, 1080, (14.0, 18.0, 22.0)
"""Frames of each clip, their size, and their edge strengths by octave: those of a busy street."""

FILM, FILM_WINDOW, FILM_RATE = "film", 10.0, 1.9
"""The recording: its name, the seconds of a window, and how many windows it has for each second of
all phases: about as many as are answered."""

TILING = TilingConfig(448, 121)
"""The tiles of NVILA-Lite."""

WAIT = 0.05
"""Seconds between two looks at whether what is owed has been answered."""


def frames_of(stream: str, end: datetime, seconds: float) -> list[FrameRef]:
    """Return references to the frames of a clip, of which each shows something new."""
    times = [end.timestamp() - seconds * (FRAMES - n) / FRAMES for n in range(FRAMES)]
    return [
        FrameRef(
            stream_id=stream,
            id=f"{round(1000 * at)}-0",
            time=at,
            pts=at,
            width=WIDTH,
            height=HEIGHT,
            change=0.1,
            detail=DETAIL,
            fresh=DETAIL,
        )
        for at in times
    ]


def request(kind: RequestKind, owner: str, number: int = 0) -> ClipRequest:
    """Return a request; `owner` names its watch or recording, `number` is its window there."""
    end, seconds, data = utc_now(), WINDOW, None
    if kind is RequestKind.FILE:
        seconds = FILM_WINDOW
        end = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds * (number + 1))
        data = {"media_start": seconds * number, "media_end": seconds * (number + 1)}
    return ClipRequest(
        kind=kind,
        stream_id=owner,
        stream_name=owner,
        watch_id=owner if kind is RequestKind.WATCH else None,
        start=end - timedelta(seconds=seconds),
        end=end,
        prompt="What?",
        frames=frames_of(owner, end, seconds),
        data=data,
    )


class StandIn:
    """A model that needs `SECONDS_EACH` for each request, `SLOTS` at once; see
    `workers.backend.Backend`."""

    def plan(
        self, frames: Sequence[Measures], budget: Budget, details: Sequence[Detail] | None = None
    ) -> Plan:
        """Plan with the policy of a worker by default."""
        return Adaptive().plan(frames, TILING, budget)

    def waiting(self) -> float:
        """Return 0: as many run at once as the worker has slots."""
        return 0.0

    def answer(self, clip: ClipRequest, jpegs: Sequence[bytes], plan: Plan) -> Completion:
        """Answer after a while."""
        raise NotImplementedError  # `Site.answer` does

    def stats(self) -> Mapping[str, float | str]:
        """Report nothing."""
        return {}


@dataclass
class Phase:
    """What became of the requests of one phase, and what the service held at its end.

    Attributes:
        name: as the table shows it.
        seconds: its length.
        waits: of answered queries, in seconds.
        answers: by watch, or by kind.
        loads, tiles: of each clip of queries and watches when it was planned.
        held: memory of this program, memory of Redis in MB, and the number of its keys.
    """

    name: str
    seconds: float
    accepted: int = 0
    refused: int = 0
    waits: list[float] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    loads: list[float] = field(default_factory=list)
    tiles: list[int] = field(default_factory=list)
    held: tuple[float, float, int] = (0.0, 0.0, 0)

    def note(self, asked: ClipRequest) -> None:
        """Note an answer."""
        self.answers[asked.watch_id or asked.kind.value] += 1
        if asked.kind is RequestKind.QUERY:
            self.waits.append(time.time() - asked.created_at.timestamp())

    def column(self) -> list[Any]:
        """Return the column of the table."""
        p50, p95 = percentiles(self.waits, 50, 95)
        captions = [self.answers[f"watch{number}"] / self.seconds * 60 for number in range(WATCHES)]
        return [
            self.accepted,
            len(self.waits),
            self.refused,
            p50,
            p95,
            f"{min(captions):.1f} to {max(captions):.1f}",
            round(self.answers["file"] / self.seconds * 60),
            mean(self.loads),
            float(mean(self.tiles)),
            *self.held,
        ]


ROWS = (
    "queries accepted",
    "answered",
    "refused",
    "seconds until the answer, p50",
    "p95",
    "captions of a watch a minute",
    "clips of the recording a minute",
    "mean load that clips were planned with",
    "mean tiles of a clip",
    "memory of worker and this program, MB",
    "memory of Redis, MB",
    "keys in Redis",
)


class Site:
    """Queries, watches and a recording, and a worker that answers them.

    Args:
        connections: to the server of everything.
        windows: of the recording.
    """

    def __init__(self, connections: Connections, settings: Settings, windows: int) -> None:
        self._client = connections.main
        self._most = settings.max_pending_clips
        self._jobs = Jobs(self._client, settings)
        self._context = context.WorkerContext(settings, connections, backend=StandIn())
        context.install(self._context)
        self._windows, self._submitted = windows, 0
        self.film: Counter[float] = Counter()
        self.phase = Phase("", 1.0)
        self._lock = threading.Lock()

    def answer(self, stored: dict[str, Any]) -> None:
        """Plan and answer a clip, in a slot of the worker."""
        asked, phase = ClipRequest.model_validate(stored), self.phase
        started = time.time()
        plan = plan_clip(self._context, asked, started)
        if asked.kind is not RequestKind.FILE:  # which is planned as on an idle worker
            phase.loads.append(worker_load(self._context, asked, started))
            phase.tiles.append(plan.tiles)
        time.sleep(SECONDS_EACH)
        result = Result.answering(asked, text="A red car waits at the gate.")
        self._context.results.publish(result, owner_id=owner_of(asked))
        with self._lock:
            self.phase.note(asked)
            if asked.kind is RequestKind.FILE:
                self.film[(asked.data or {})["media_start"]] += 1

    def run(self, phase: Phase, rate: float) -> None:
        """Ask for the seconds of a phase, then wait until every query that was accepted is
        answered."""
        self.phase = phase
        began = time.monotonic()
        asked, next_window = 0, [began + WINDOW * n / WATCHES for n in range(WATCHES)]
        while (now := time.monotonic()) < began + phase.seconds:
            while asked < (now - began) * rate:
                asked += 1
                try:
                    self._jobs.submit(request(RequestKind.QUERY, "yard"))
                    phase.accepted += 1
                except StreamerError:
                    phase.refused += 1
            for number, due in enumerate(next_window):
                if now >= due:
                    next_window[number] += WINDOW
                    clip = request(RequestKind.WATCH, f"watch{number}")
                    self._jobs.submit_newest(clip, self._most)
            self._read_on()
            time.sleep(0.01)
        while len(phase.waits) < phase.accepted:
            time.sleep(WAIT)
        phase.held = held(self._client)

    def finish(self) -> str:
        """Read the recording to its end; say whether each of its windows has one answer."""
        while self._answered() < self._windows:
            self._read_on()
            time.sleep(WAIT)
        once = sum(count == 1 for count in self.film.values())
        return (
            f"The recording is {'complete' if once == self._windows else 'INCOMPLETE'}: {once} of "
            f"its {self._windows} windows have one answer."
        )

    def _answered(self) -> int:
        with self._lock:
            return sum(self.film.values())

    def _read_on(self) -> None:
        if self._submitted < self._windows and self._jobs.in_flight(FILM) < self._most:
            self._jobs.submit(request(RequestKind.FILE, FILM, self._submitted))
            self._submitted += 1


def held(client: redis.Redis) -> tuple[float, float, int]:
    """Return the memory of this program and of Redis in MB, and the number of keys."""
    info = client.info("memory")
    own = psutil.Process().memory_info().rss
    return own / 1e6, info["used_memory"] / 1e6, client.dbsize()


def main() -> None:
    """Print the ledger."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    parser.add_argument("--calm", type=float, default=60.0, help="of the phases before and after")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    configure_logging("error")
    phases = [
        (Phase("before", given.calm), 1),
        (Phase("ten times the queries", given.seconds), FACTOR),
        (Phase("after", given.calm), 1),
    ]
    windows = round(FILM_RATE * sum(phase.seconds for phase, _ in phases))
    stopping = threading.Event()
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedServer(Path(folder), persistent=False, max_memory=256 << 20) as server,
        Connections(settings := Settings(redis_url=server.url)) as connections,
    ):
        site = Site(connections, settings, windows)
        worker = ThreadWorker(
            CLIP_QUEUES,
            connections.main,
            slots=SLOTS,
            functions={CLIP_JOB: site.answer},
            stopping=stopping,
            lease=12.0,
            on_failed=lambda *_: None,
        )
        timeline = Timeline(f"sqlite:///{folder}/timeline.db", upgrade=True)
        recorder = Recorder(connections.main, timeline, stopping=stopping)
        threads = [threading.Thread(target=target) for target in (worker.work, recorder.run)]
        for thread in threads:
            thread.start()
        start = held(connections.main)
        for phase, factor in phases:
            site.run(phase, SUSTAINABLE * factor)
        complete = site.finish()
        end = held(connections.main)
        stopping.set()
        for thread in threads:
            thread.join()
        timeline.close()
    idle = [None] * (len(ROWS) - len(start))
    columns = [[*idle, *start], *(phase.column() for phase, _ in phases), [*idle, *end]]
    rows = [[name, *cells] for name, *cells in zip(ROWS, *columns, strict=True)]
    header = ["", "start", *(phase.name for phase, _ in phases), "end"]
    publish({"rows": rows, "complete": complete}, header, rows)
    print(complete, file=sys.stderr if given.json else sys.stdout)


if __name__ == "__main__":
    main()
