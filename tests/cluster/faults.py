"""Faults that hit a cluster: each begins, lasts a while, and ends."""

import contextlib
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from statistics import median

import redis

from tests.cluster.load import Load
from tests.cluster.machines import Cluster, pick_seconds
from tests.cluster.network import can_lose
from tests.cluster.servers import MAX_MEMORY, Postgres

_FULL_MARGIN = 64 << 10
"""Bytes that a server has left when it is made full."""

_MAX_STEP = 3600
"""Seconds, at most, by which the clock of a host is set forward or back."""

_SERVERS = "servers of jobs"
"""What of two faults only one may hit at a time: a write survives one server, not both."""


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        name: as the ledger counts it.
        begin: begins it, and returns what ends it.
        seconds: how long it lasts, at least and at most.
        group: only one fault of a group may last at a time; None: any number.
    """

    name: str
    begin: Callable[[], Callable[[], None]]
    seconds: tuple[float, float] = (1.0, 30.0)
    group: str | None = None


class Faults:
    """Injects faults.

    Args:
        cluster, load: what they hit.
        seed: the same seed draws the same faults.
        every: mean seconds between two faults.
        lasting: names of programs that no fault ends.

    Attributes:
        counts: how many faults of each kind there were.
    """

    def __init__(
        self,
        cluster: Cluster,
        load: Load,
        seed: int,
        every: float,
        *,
        lasting: Collection[str] = (),
    ) -> None:
        self._cluster, self._load = cluster, load
        self._mortal = [each for each in cluster.machines if each.name not in lasting]
        self._random = random.Random(seed)
        self._every = every
        self._next = time.monotonic() + every
        self._last: list[tuple[float, Fault, Callable[[], None]]] = []
        self.counts: Counter[str] = Counter()
        self.kinds = [
            Fault("program killed", self._kill, (0.1, 0.2)),
            Fault("program stopped", self._terminate, (0.1, 0.2)),
            Fault("program frozen", self._freeze),
            Fault("program cut off", self._cut),
            Fault("slow link", self._slow_down),
            *([Fault("lossy link", self._lose)] if can_lose() else []),
            Fault("server of jobs killed", self._kill_server, (4, 12), _SERVERS),
            Fault("server of jobs frozen", self._freeze_server, (0.5, 15), _SERVERS),
            Fault("server of jobs cut off", self._cut_server, (4, 20), _SERVERS),
            Fault("server of jobs full", self._fill, (2, 20), _SERVERS),
            Fault("disk of jobs full", self._fill_disk, (2, 20), _SERVERS),
            Fault("server of frames frozen", self._freeze_frames, (0.5, 13)),
            Fault("camera lost", self._lose_camera, (1, 20)),
        ]
        database = cluster.database
        if isinstance(database, Postgres):
            kinds = [("crashed", self._crash(database)), ("cut off", self._cut_off(database))]
        else:
            kinds = [("locked", database.lock), ("disk full", database.fill_disk)]
        self.kinds += [
            Fault(f"database {name}", begin, (2, 20), "database") for name, begin in kinds
        ]
        if cluster.clocks:
            self.kinds.append(Fault("clock stepped", self._step_clock))

    def tick(self) -> None:
        """End the faults that are over, and begin one that is due."""
        now = time.monotonic()
        self._end(lambda at: at <= now)
        if now >= self._next:
            self._next = now + self._random.expovariate(1 / self._every)
            lasting = {fault.group for _, fault, _ in self._last} - {None}
            self._begin(self._random.choice([k for k in self.kinds if k.group not in lasting]))

    def calm(self) -> None:
        """End all faults."""
        while self._last:
            self._end(lambda _: True)

    def drill(self, fault: Fault) -> None:
        """Let one fault begin, last and end, with no other beside it."""
        self.calm()
        self._begin(fault)
        while self._last:
            for part in (self._cluster, self._load):
                part.tick()
            self._end(lambda at: at <= time.monotonic())
            time.sleep(0.1)

    def _begin(self, fault: Fault) -> None:
        try:
            end = fault.begin()
        except (redis.exceptions.RedisError, sqlite3.OperationalError):
            return  # what it would hit is down or busy
        self.counts[fault.name] += 1
        until = time.monotonic() + pick_seconds(self._random, *fault.seconds)
        self._last.append((until, fault, end))

    def _end(self, due: Callable[[float], bool]) -> None:
        for lasting in [each for each in self._last if due(each[0])]:
            self._last.remove(lasting)
            try:
                lasting[2]()
            except redis.exceptions.RedisError:  # it is down: again in a moment
                self._last.append((time.monotonic() + 0.5, lasting[1], lasting[2]))

    def _kill(self) -> Callable[[], None]:
        machine = self._random.choice(self._mortal)
        machine.end(signal.SIGKILL, self._random.uniform(0.2, 3))
        return _nothing

    def _terminate(self) -> Callable[[], None]:
        machine = self._random.choice(self._mortal)
        machine.thaw()
        machine.end(signal.SIGTERM, self._random.uniform(0.2, 3))
        return _nothing

    def _freeze(self) -> Callable[[], None]:
        machine = self._random.choice(self._cluster.machines)
        machine.freeze()
        return machine.thaw

    def _cut(self) -> Callable[[], None]:
        host = self._random.choice(self._cluster.machines).host
        host.cut()
        return host.mend

    def _slow_down(self) -> Callable[[], None]:
        host = self._random.choice(self._cluster.machines).host
        host.slow_down()
        return host.mend

    def _lose(self) -> Callable[[], None]:
        host = self._random.choice(self._cluster.machines).host
        host.lose()
        return host.mend

    def _step_clock(self) -> Callable[[], None]:
        machine = self._random.choice(self._cluster.machines)
        machine.set_clock(self._random.randint(-_MAX_STEP, _MAX_STEP))
        return lambda: machine.set_clock(0)

    def _kill_server(self) -> Callable[[], None]:
        server = self._cluster.jobs.primary()
        server.kill()
        return server.start

    def _freeze_server(self) -> Callable[[], None]:
        server = self._cluster.jobs.primary()
        server.signal(signal.SIGSTOP)
        return lambda: server.signal(signal.SIGCONT)

    def _cut_server(self) -> Callable[[], None]:
        host = self._cluster.jobs.primary().host
        host.cut()
        return host.mend

    def _fill(self) -> Callable[[], None]:
        server = self._cluster.jobs.primary()

        def set_limit(margin: int | None) -> None:
            with server.client() as client:
                used = int(client.info("memory")["used_memory"])
                limit = MAX_MEMORY if margin is None else used + margin
                client.config_set("maxmemory", limit)

        set_limit(_FULL_MARGIN)
        return lambda: set_limit(None)

    def _fill_disk(self) -> Callable[[], None]:
        return self._cluster.jobs.primary().fill_disk()

    def _freeze_frames(self) -> Callable[[], None]:
        server = self._cluster.frames
        server.signal(signal.SIGSTOP)
        return lambda: server.signal(signal.SIGCONT)

    @staticmethod
    def _crash(database: Postgres) -> Callable[[], Callable[[], None]]:
        def begin() -> Callable[[], None]:
            database.crash()
            return database.start

        return begin

    @staticmethod
    def _cut_off(database: Postgres) -> Callable[[], Callable[[], None]]:
        def begin() -> Callable[[], None]:
            database.host.cut()
            return database.host.mend

        return begin

    def _lose_camera(self) -> Callable[[], None]:
        proxy = self._random.choice(self._load.cameras).proxy
        proxy.faults.refuse = True
        proxy.hang_up()

        def mend() -> None:
            proxy.faults.refuse = False

        return mend


def _nothing() -> None:
    """End a fault that ends by itself."""


class Recovery:
    """Measures how long a cluster takes until it works again after a fault.

    It works when a question that is asked after the fault has its answer in the database, and every
    camera has a newer frame.

    Attributes:
        seconds: from the end of a fault, by its name.
        slow: the faults after which it did not work within `limit` seconds.
    """

    def __init__(self, cluster: Cluster, load: Load, limit: float) -> None:
        self._cluster, self._load = cluster, load
        self._limit = limit
        self.seconds: dict[str, list[float]] = {}
        self.slow: Counter[str] = Counter()

    def measure(self, fault: str) -> None:
        """Wait until the cluster works again, from now on."""
        began, asked, fresh_from = time.monotonic(), "", time.time()
        self.seconds.setdefault(fault, [])
        with self._cluster.client() as client:
            client.first_frame_wait = 0.0
            while time.monotonic() - began < self._limit:
                for part in (self._cluster, self._load):
                    part.tick()
                with contextlib.suppress(Exception):  # it does not work yet
                    if not asked:
                        camera = self._load.cameras[0]
                        asked = client.ask("What is there?", camera.name, max_tokens=4).id
                        self._load.accepted.queries.add(asked)
                    seen = [
                        client.stream(camera.stream_id).last_frame_at
                        for camera in self._load.cameras
                    ]
                    fresh = all(at is not None and at.timestamp() > fresh_from for at in seen)
                    if fresh and client.timeline.get(asked) is not None:
                        self.seconds[fault].append(round(time.monotonic() - began, 1))
                        return
                time.sleep(0.1)
        self.slow[fault] += 1

    def summary(self) -> dict[str, tuple[float, float]]:
        """Return the median and the longest recovery in seconds, by fault."""
        return {
            name: (round(median(each), 1), max(each)) for name, each in self.seconds.items() if each
        }

    def __str__(self) -> str:
        rows = ["| fault | times | p50 s | max s |", "|---|---:|---:|---:|"]
        for name, seconds in self.seconds.items():
            middle = f"{median(seconds):.1f} | {max(seconds)}" if seconds else "- | -"
            rows.append(f"| {name} | {len(seconds)} | {middle} |")
        return "\n".join(rows)
