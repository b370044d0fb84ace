"""Balance what a cluster accepted against what it delivered."""

import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, cast

import redis

from streamer.domain.result import Result
from streamer.domain.stream import StreamState
from streamer.service import Service
from streamer.settings import Settings
from tests.cluster.load import RECORDING_SECONDS, WINDOW, Load
from tests.cluster.machines import Cluster
from tests.cluster.samples import Growth

MAX_RECOVERY = 60.0
"""Seconds after the last fault in which every camera has to run again."""

MAX_SETTLING = 240.0
"""Seconds in which, after the last fault, fewer results than before have to be owed."""

MAX_DOUBLE_READING = 2 * float(Settings.model_fields["lease"].default)
"""Seconds for which two workers may hold connections to one camera: while one is frozen."""

_OVERLAP = 0.05
"""Seconds by which windows that stand back to back may overlap because times are rounded."""

_PRINT_EVERY = 30.0
"""Seconds after which it says again how much is owed."""

_MAX_OVERLAPS = 20
"""Overlaps of which the ledger tells more than their number."""


@dataclass
class Ledger:
    """What was accepted, what came of it, and what must be zero: one line as text.

    `recovery` is the median and the longest recovery in seconds, by fault. `patience` is how many
    times as long as usual everything may take. `overlaps` are the first captions that overlap the
    one before, and that one, so that the cause can be found.
    """

    database: str = ""
    seed: int = 0
    patience: float = 1.0
    faults: dict[str, int] = field(default_factory=dict)
    recovery: dict[str, tuple[float, float]] = field(default_factory=dict)
    accepted: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    answered: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    doubled: int = 0
    taken_back: int = 0
    unrecorded: int = 0
    recordings: int = 0
    windows_missing: int = 0
    windows_doubled: int = 0
    captions: int = 0
    captions_overlapping: int = 0
    overlaps: list[str] = field(default_factory=list)
    cameras_not_running: int = 0
    longest_double_reading_s: float = 0.0
    seconds_until_running: float = 0.0
    seconds_until_settled: float = 0.0
    orphans: list[str] = field(default_factory=list)
    deaths: dict[str, list[int]] = field(default_factory=dict)
    starts: dict[str, int] = field(default_factory=dict)
    failed_starts: int = 0
    servers_repaired: int = 0
    growth: dict[str, list[Growth]] = field(default_factory=dict)

    def wrong(self) -> list[str]:
        """Return what is wrong, as sentences."""
        zero = (
            "lost",
            "doubled",
            "unrecorded",
            "windows_missing",
            "windows_doubled",
            "captions_overlapping",
            "cameras_not_running",
        )
        wrong = [f"{name} is {getattr(self, name)}" for name in zero if getattr(self, name)]
        if self.longest_double_reading_s > MAX_DOUBLE_READING * self.patience:
            wrong.append(f"a camera was read twice for {self.longest_double_reading_s:.1f} s")
        if self.orphans:
            wrong.append(f"left in Redis: {', '.join(self.orphans)}")
        if self.deaths:
            wrong.append(f"programs died: {self.deaths}")
        for name, resources in self.growth.items():
            wrong += [
                f"{name}: {each.resource} grows by {each.per_hour:g} an hour"
                for each in resources
                if each.too_much
            ]
        return wrong

    def table(self) -> str:
        """Return the counts as a Markdown table, a row each."""
        rows: list[tuple[str, object]] = [
            ("faults", sum(self.faults.values())),
            ("questions accepted", self.accepted),
            ("questions refused", sum(self.refused.values())),
            ("accepted questions answered", self.answered),
            ("accepted questions that ended with a code", self.failed or 0),
            ("lost", self.lost),
            ("answered twice", self.doubled),
            ("answers that a failover took back, given again", self.taken_back),
            ("results that the recorder missed", self.unrecorded),
            ("recordings analyzed", self.recordings),
            ("windows of recordings missing", self.windows_missing),
            ("windows of recordings asked about twice", self.windows_doubled),
            ("captions", self.captions),
            ("captions that overlap the one before", self.captions_overlapping),
            ("cameras not running a minute later", self.cameras_not_running),
            ("longest time that two workers read one camera, s", self.longest_double_reading_s),
            ("left of detached streams", ", ".join(self.orphans) or 0),
            ("programs that ended by themselves", self.deaths or 0),
            ("starts that found no server, tried again", self.failed_starts),
            ("Redis servers that could not read their file", self.servers_repaired),
            ("seconds until every camera ran", self.seconds_until_running),
            ("seconds from the last fault until nothing was owed", self.seconds_until_settled),
        ]
        head = [f"| | seed {self.seed}, {self.database} |", "|---|---:|"]
        return "\n".join([*head, *(f"| {name} | {value} |" for name, value in rows)])

    def __str__(self) -> str:
        return json.dumps(asdict(self))


class Balance:
    """Waits until a cluster has settled, then draws up its ledger.

    Args:
        cluster, load: the cluster and what it had to do.
        patience: how many times as long as usual it may take.
    """

    def __init__(self, cluster: Cluster, load: Load, patience: float = 1.0) -> None:
        self._cluster, self._load = cluster, load
        self._ledger = Ledger(patience=patience)
        self._patience = patience

    def count_cameras(self) -> None:
        """Wait until all cameras run, a minute at most, and count those that do not. All faults
        have ended."""
        ledger, began = self._ledger, time.monotonic()
        with self._cluster.client() as client:
            self._wait(lambda: self._cameras_down(client) == 0, MAX_RECOVERY)
            seconds = round(time.monotonic() - began, 1)
            ledger.seconds_until_running = max(ledger.seconds_until_running, seconds)
            ledger.cameras_not_running += self._cameras_down(client)

    def so_far(self) -> str:
        """Return what can be said while the cluster works, as a sentence."""
        published = [len(results) for results in list(self._load.published.values())]
        open_queries = self._load.accepted.queries - self._load.published.keys()
        return (
            f"{len(self._load.accepted.queries)} questions accepted, {len(open_queries)} not "
            f"answered yet; {sum(published)} results, {sum(n > 1 for n in published)} doubled; "
            f"{self._ledger.cameras_not_running} cameras did not run again; "
            f"deaths: {sum(len(machine.deaths) for machine in self._cluster.machines)}; "
            f"servers repaired: {sum(server.repairs for server in self._cluster.jobs.servers)}."
        )

    @property
    def ledger(self) -> Ledger:
        """The ledger as far as it is drawn up."""
        return self._ledger

    def draw_up(self) -> Ledger:
        """Return the ledger. All faults have ended, and nothing new is asked."""
        ledger, load = self._ledger, self._load
        began = time.monotonic()
        self.count_cameras()
        with self._cluster.client() as client:
            self._wait_for_results(client)
            ledger.seconds_until_settled = round(time.monotonic() - began, 1)
            self._count_queries(client)
            self._count_recordings(client)
            self._count_captions()
            self._detach_all(client)
        ledger.refused = dict(load.accepted.refused)
        ledger.servers_repaired = sum(server.repairs for server in self._cluster.jobs.servers)
        ledger.longest_double_reading_s = max(camera.doubled_for for camera in load.cameras)
        for machine in self._cluster.machines:
            ledger.starts[machine.name] = machine.starts
            ledger.failed_starts += machine.failed_starts
            if machine.deaths:
                ledger.deaths[machine.name] = machine.deaths
        return ledger

    def _wait(self, condition: Callable[[], bool], seconds: float) -> None:
        deadline = time.monotonic() + seconds * self._patience
        while not condition() and time.monotonic() < deadline:
            self._cluster.tick()
            time.sleep(0.5)

    def _cameras_down(self, client: Service) -> int:
        try:
            states = {stream.id: stream.state for stream in client.streams()}
        except redis.exceptions.RedisError:  # a replica is about to take the primary's place
            return len(self._load.cameras)
        return sum(
            states.get(camera.stream_id) is not StreamState.RUNNING for camera in self._load.cameras
        )

    def _wait_for_results(self, client: Service) -> None:
        """Wait until no result is owed, for as long as ever fewer are."""
        fewest, printed_at = math.inf, time.monotonic()
        deadline = printed_at + MAX_SETTLING * self._patience
        while (owed := self._owed(client)) and (owed < fewest or time.monotonic() < deadline):
            if owed < fewest:
                fewest, deadline = owed, time.monotonic() + MAX_SETTLING * self._patience
            if time.monotonic() - printed_at > _PRINT_EVERY:
                printed_at = time.monotonic()
                print(f"{owed:.0f} results are owed still", flush=True)
            self._cluster.tick()
            time.sleep(0.5)

    def _owed(self, client: Service) -> float:
        """Return how many queries, recordings and windows of recordings have not ended; infinity
        while Redis does not answer."""
        accepted, published = self._load.accepted, self._load.published
        try:
            self._load.note_ended(client)
        except redis.exceptions.RedisError:
            return math.inf
        open_recordings = accepted.recordings.keys() - accepted.over
        answered = sum(
            result.stream_id in open_recordings
            for results in list(published.values())
            for result in results[:1]
        )
        windows = len(open_recordings) * (1 + round(RECORDING_SECONDS / WINDOW))
        return len(accepted.queries - published.keys()) + windows - answered

    def _count_queries(self, client: Service) -> None:
        ledger, failed = self._ledger, Counter[str]()
        ids = self._load.accepted.queries
        ledger.accepted = len(ids)
        for query_id in ids:
            results = self._load.published.get(query_id, [])
            ledger.lost += not results
            for result in results[:1]:
                if result.error is None:
                    ledger.answered += 1
                else:
                    failed[result.error.code] += 1
        ledger.failed = dict(failed)
        ledger.doubled = sum(len(results) > 1 for results in list(self._load.published.values()))
        ledger.taken_back = self._load.taken_back
        self._wait(lambda: not self._unrecorded(client), 30)
        ledger.unrecorded = self._unrecorded(client)

    def _unrecorded(self, client: Service) -> int:
        return sum(
            client.timeline.get(request_id) is None for request_id in list(self._load.published)
        )

    def _count_recordings(self, client: Service) -> None:
        ledger = self._ledger
        starts: dict[str, list[float]] = defaultdict(list)
        for results in list(self._load.published.values()):
            for result in results:
                data = result.data or {}
                if result.stream_id in self._load.accepted.recordings and "media_start" in data:
                    starts[result.stream_id].append(float(data["media_start"]))
        wanted = [n * WINDOW for n in range(round(RECORDING_SECONDS / WINDOW))]
        ledger.recordings = len(self._load.accepted.recordings)
        for stream_id in self._load.accepted.recordings:
            found = Counter(round(start, 3) for start in starts[stream_id])
            ledger.windows_missing += sum(not found[start] for start in wanted)
            ledger.windows_doubled += sum(count > 1 for count in found.values())

    def _count_captions(self) -> None:
        ledger = self._ledger
        for camera in self._load.cameras:
            captions = [
                result
                for results in list(self._load.published.values())
                for result in results[:1]
                if result.stream_id == camera.stream_id and result.watch_id is not None
            ]
            found = overlaps(captions)
            ledger.captions += len(captions)
            ledger.captions_overlapping += len(found)
            ledger.overlaps += [f"{camera.name}: {each}" for each in found]
        del ledger.overlaps[_MAX_OVERLAPS:]

    def _detach_all(self, client: Service) -> None:
        """Detach all streams, and note what is left of them in Redis a while later."""
        for stream in client.streams():
            client.detach(stream.id)
        with self._cluster.open_jobs() as connection:
            self._wait(lambda: not _left(connection), 4 * self._cluster.settings.lease)
            self._ledger.orphans = _left(connection)


def overlaps(captions: Iterable[Result]) -> list[str]:
    """Return the captions of one camera that overlap the one before, with what tells the cause."""
    in_order = sorted(captions, key=_span)
    return [
        f"{_described(before)}; {_described(after)}"
        for before, after in pairwise(in_order)
        if _span(before)[1] - _span(after)[0] > _OVERLAP
    ]


def _span(result: Result) -> tuple[float, float]:
    """Return start and end of the clip of a result, epoch seconds."""
    assert result.start is not None
    assert result.end is not None
    return result.start.timestamp(), result.end.timestamp()


def _described(result: Result) -> str:
    start, end = _span(result)
    code = f" {result.error.code}" if result.error is not None else ""
    captured = ", ".join(f"{each.timestamp():.3f}" for each in result.frame_times)
    answered = f"{result.created_at.timestamp():.3f}"
    return (
        f"{result.request_id} {start:.3f} to {end:.3f}, frames of {captured}, "
        f"answered at {answered}{code}"
    )


def _left(connection: redis.Redis) -> list[str]:
    """Return the keys and registry entries of streams that are detached, but for those that end
    by themselves."""
    keys = cast("list[bytes]", connection.keys("rq:job:*"))
    left = [key.decode() for key in keys if connection.ttl(key) == -1]
    for registry in ("rq:wip:ingest", "rq:queue:ingest", "rq:failed:ingest"):
        kind = cast(bytes, connection.type(registry)).decode()
        members: list[Any] = []
        if kind == "zset":
            members = cast("list[Any]", connection.zrange(registry, 0, -1))
        elif kind == "list":
            members = cast("list[Any]", connection.lrange(registry, 0, -1))
        left += [f"{registry} {member.decode()}" for member in members]
    for name in ("streamer:streams", "streamer:secrets", "streamer:names"):
        fields = cast("list[bytes]", connection.hkeys(name))
        left += [f"{name} {item.decode()}" for item in fields if item != b"key-check"]
    return left
