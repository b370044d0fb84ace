"""Faults that hit a cluster at random: each begins, lasts a while, and ends."""

import random
import signal
import time
from collections import Counter
from collections.abc import Callable

import redis

from tests.cluster.load import Load
from tests.cluster.machines import Cluster, pick_seconds

_FULL_MARGIN = 64 << 10
"""Bytes that a server has left when it is made full."""


class Faults:
    """Injects random faults.

    Args:
        cluster, load: what they hit.
        seed: the same seed draws the same faults.
        every: mean seconds between two faults.

    Attributes:
        counts: how many faults of each kind there were.
    """

    def __init__(self, cluster: Cluster, load: Load, seed: int, every: float) -> None:
        self._cluster, self._load = cluster, load
        self._random = random.Random(seed)
        self._every = every
        self._next = time.monotonic() + every
        self._ends: list[tuple[float, Callable[[], None]]] = []
        self._busy: dict[str, float] = {}
        self.counts: Counter[str] = Counter()

    def tick(self) -> None:
        """End the faults that are over, and begin one that is due."""
        now = time.monotonic()
        self._end(lambda at: at <= now)
        if now >= self._next:
            self._next = now + self._random.expovariate(1 / self._every)
            self._begin()

    def calm(self) -> None:
        """End all faults."""
        while self._ends:
            self._end(lambda _: True)

    def _end(self, due: Callable[[float], bool]) -> None:
        for end in [end for end in self._ends if due(end[0])]:
            self._ends.remove(end)
            try:
                end[1]()
            except redis.exceptions.RedisError:  # frozen: again in a moment
                self._for(0.5, end[1])

    def _begin(self) -> None:
        rng = self._random
        kinds: list[tuple[str, Callable[[], None]]] = [
            ("program killed", self._kill),
            ("program stopped", self._terminate),
            ("program frozen", self._freeze_program),
            ("program cut off", self._cut),
            ("connections reset", self._reset),
            ("jobs server silent", lambda: self._freeze_server("main")),
            ("frames server silent", lambda: self._freeze_server("frames")),
            ("jobs server full", self._fill),
            ("camera lost", self._lose_camera),
        ]
        name, begin = rng.choice(kinds)
        self.counts[name] += 1
        begin()

    def _for(self, seconds: float, end: Callable[[], None]) -> None:
        self._ends.append((time.monotonic() + seconds, end))

    def _kill(self) -> None:
        self._random.choice(self._cluster.machines).end(
            signal.SIGKILL, self._random.uniform(0.2, 3)
        )

    def _terminate(self) -> None:
        machine = self._random.choice(self._cluster.machines)
        machine.thaw()
        machine.end(signal.SIGTERM, self._random.uniform(0.2, 3))

    def _freeze_program(self) -> None:
        machine = self._random.choice(self._cluster.machines)
        machine.freeze()
        self._for(pick_seconds(self._random, 1, 30), machine.thaw)

    def _cut(self) -> None:
        cables = self._random.choice(self._cluster.machines).cables
        for cable in cables:
            cable.cut = True

        def mend() -> None:
            for cable in cables:
                cable.cut = False

        self._for(pick_seconds(self._random, 1, 30), mend)

    def _reset(self) -> None:
        for cable in self._random.choice(self._cluster.machines).cables:
            cable.hang_up()

    def _freeze_server(self, name: str) -> None:
        server = getattr(self._cluster, name)
        self._cluster.freeze(server)
        self._for(pick_seconds(self._random, 0.5, 13), lambda: self._cluster.thaw(server))

    def _fill(self) -> None:
        limit = self._cluster.main.max_memory or 0

        def set_limit(limit: int | None = None) -> None:
            with redis.Redis.from_url(self._cluster.main.url, socket_timeout=1) as client:
                used = int(client.info("memory")["used_memory"])
                client.config_set("maxmemory", limit or used + _FULL_MARGIN)

        self._for(0.0, set_limit)
        self._for(pick_seconds(self._random, 2, 20), lambda: set_limit(limit))

    def _lose_camera(self) -> None:
        proxy = self._random.choice(self._load.cameras).proxy
        proxy.faults.refuse = True
        proxy.hang_up()

        def mend() -> None:
            proxy.faults.refuse = False

        self._for(pick_seconds(self._random, 1, 20), mend)
