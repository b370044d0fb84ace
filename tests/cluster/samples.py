"""Sample what the programs of a cluster hold, and how much it grows."""

import contextlib
import math
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Self

import numpy as np
import psutil
import redis

from tests.cluster.machines import Cluster
from tests.cluster.servers import RedisServer

_EVERY = 5.0
_MINUTE = 60.0
_WARM_UP = 3
"""Minutes of a program at its start that do not count: it fills its caches."""

_MIN_MINUTES = 20
"""Minutes, at least, after which growth is judged."""

LIMITS = {
    "memory_mib": 32.0,
    "threads": 4.0,
    "descriptors": 8.0,
    "keys": math.inf,  # that a request was answered is known for an hour, a call's key for a day
    "lasting_keys": 50.0,
}
"""How much of each may be added in an hour; `lasting_keys` are those that do not expire."""

_Sample = dict[str, float]


@dataclass(frozen=True)
class Growth:
    """How much of a resource a program held, and how much of it was added in an hour.

    Attributes:
        resource: one of `LIMITS`.
        minutes: how long it was watched, without the minutes after each start.
        mean, highest: of all samples.
        per_hour, error: the slope and its standard error.
    """

    resource: str
    minutes: int
    mean: float
    highest: float
    per_hour: float
    error: float

    @property
    def too_much(self) -> bool:
        """Whether it grows, beyond doubt, by more than it may."""
        return (
            self.minutes >= _MIN_MINUTES and self.per_hour - 2 * self.error > LIMITS[self.resource]
        )


class Samples:
    """Samples each program and each Redis server every few seconds, in a thread.

    A program that starts again begins a new series. Of each minute the lowest value counts, because
    a fault adds for a while: connections, and data that waits to be sent. All series of a program
    have one slope, and each a level of its own.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._series: dict[tuple[str, str], list[tuple[float, _Sample]]] = defaultdict(list)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="samples", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(30)

    def growth(self) -> dict[str, list[Growth]]:
        """Return the growth of each resource, by the name of the program or server."""
        of: dict[str, list[list[tuple[float, _Sample]]]] = defaultdict(list)
        for (name, _), series in sorted(self._series.items()):
            of[name].append(list(series))
        return {
            name: [_growth(resource, every) for resource in every[0][0][1]]
            for name, every in of.items()
        }

    def _run(self) -> None:
        while not self._done.wait(_EVERY):
            for machine in self._cluster.machines:
                if (pid := machine.pid) is not None:
                    with contextlib.suppress(psutil.Error):  # it has just ended
                        self._note(machine.name, str(pid), _of_program(pid))
            for server in (*self._cluster.jobs.servers, self._cluster.frames):
                with contextlib.suppress(redis.exceptions.RedisError):  # a fault hits it
                    self._note(f"redis {server.host.name}", *_of_server(server))

    def _note(self, name: str, life: str, sample: _Sample) -> None:
        self._series[name, life].append((time.monotonic(), sample))


def _of_program(pid: int) -> _Sample:
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return {
        "memory_mib": sum(each.memory_full_info().pss for each in family) / 2**20,
        "threads": sum(each.num_threads() for each in family),
        "descriptors": sum(each.num_fds() for each in family),
    }


def _of_server(server: RedisServer) -> tuple[str, _Sample]:
    with server.client() as client:
        info = client.info()
    keys, expiring = (info.get("db0", {}).get(name, 0) for name in ("keys", "expires"))
    return str(info["run_id"]), {
        "memory_mib": int(info["used_memory"]) / 2**20,
        "keys": float(keys),
        "lasting_keys": float(keys - expiring),
    }


def _growth(resource: str, every: Iterable[Sequence[tuple[float, _Sample]]]) -> Growth:
    series = [[(at, sample[resource]) for at, sample in samples] for samples in every]
    values = [value for samples in series for _, value in samples]
    minutes = [lowest_of_minutes(samples)[_WARM_UP:] for samples in series]
    per_hour, error = slope([each for each in minutes if len(each) > 1])
    return Growth(
        resource,
        minutes=sum(len(each) for each in minutes),
        mean=round(float(np.mean(values)), 1),
        highest=round(max(values), 1),
        per_hour=round(per_hour, 1),
        error=round(error, 1),
    )


def lowest_of_minutes(samples: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return when each whole minute of `samples`, which are (seconds, value), began, and its lowest
    value."""
    start = samples[0][0]
    by_minute = groupby(samples, key=lambda sample: (sample[0] - start) // _MINUTE)
    lowest = [
        (start + minute * _MINUTE, min(value for _, value in group)) for minute, group in by_minute
    ]
    return lowest[:-1]


def slope(series: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """Return what is added to (seconds, value) in an hour, and its standard error, by least
    squares: one slope for all series, and a level for each."""
    if not series:
        return 0.0, 0.0
    centred = [np.array(each, float) - np.mean(each, axis=0) for each in series]
    times, values = np.concatenate(centred).T
    spread = float(times @ times)
    per_second = float(times @ values) / spread
    freedom = max(1, len(times) - len(series) - 1)
    residue = values - per_second * times
    error = float(np.sqrt(residue @ residue / freedom / spread))
    return 3600 * per_second, 3600 * error


def table(growth: dict[str, list[Growth]]) -> str:
    """Return the growth as a Markdown table."""
    rows = [
        "| program | resource | minutes | mean | highest | added per hour |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for name, resources in growth.items():
        rows += [
            f"| {name} | {each.resource} | {each.minutes} | {each.mean:g} | {each.highest:g} "
            f"| {each.per_hour:+g} ± {each.error:g} |"
            for each in resources
        ]
    return "\n".join(rows)
