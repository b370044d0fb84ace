"""Sample what the programs of a cluster hold, and how much it grows."""

import contextlib
import json
import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Self

import numpy as np
import psutil
import redis

from tests.cluster.load import Load
from tests.cluster.machines import Cluster, Machine
from tests.cluster.servers import RedisServer

_EVERY = 5.0
_MINUTE = 60.0
_WARM_UP = 10
"""Minutes of a program at its start that do not count: it fills its caches."""

_MIN_MINUTES = 20
"""Minutes that a program must run after the warm-up before its growth is judged."""

JUDGED_AFTER = _WARM_UP + _MIN_MINUTES
"""Minutes of faults after which growth can be judged."""

LIMITS = {
    "memory_mib": 32.0,
    "threads": 4.0,
    "descriptors": 8.0,
    "keys": math.inf,  # that a request was answered is known for an hour, a call's key for a day
    "lasting_keys": 50.0,
}
"""How much of each may be added in an hour; `lasting_keys` are those that do not expire."""

CAMERAS = "cameras"
"""Of a sample: how many cameras the program reads."""

_Sample = dict[str, float]

_Point = tuple[float, float, float]
"""Seconds, the number of cameras, and a value."""


@dataclass(frozen=True)
class Growth:
    """How much of a resource a program held, and how much of it was added in an hour.

    Attributes:
        resource: one of `LIMITS`.
        minutes: how long it was watched, without the minutes after its start; 0 if it never ran
            long enough to tell.
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

    A program that starts again begins a new series, and only a long series tells whether it grows.
    Of the servers of the jobs, the one that is the primary counts. Of each minute the lowest value
    counts, because a fault adds for a while: connections, and data that waits to be sent. What an
    ingest worker holds for each camera that it reads is no growth: the slope is that of the rest.
    All series of a program have one slope, and each a level of its own. The samples stand in
    `samples.jsonl` in `folder`.
    """

    def __init__(self, cluster: Cluster, load: Load, folder: Path) -> None:
        self._cluster, self._load = cluster, load
        self._file = folder / "samples.jsonl"
        self._series: dict[tuple[str, str], list[tuple[float, _Sample]]] = defaultdict(list)
        self._servers: dict[str, Callable[[], RedisServer]] = {
            "redis of jobs": cluster.jobs.primary,
            "redis of frames": lambda: cluster.frames,
        }
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
            name: [_growth(resource, every) for resource in every[0][0][1] if resource in LIMITS]
            for name, every in of.items()
        }

    def _run(self) -> None:
        while not self._done.wait(_EVERY):
            for machine in self._cluster.machines:
                if (pid := machine.pid) is not None:
                    with contextlib.suppress(psutil.Error):  # it has just ended
                        sample = _of_program(pid) | {CAMERAS: self._cameras(machine)}
                        self._note(machine.name, str(pid), sample)
            for name, find in self._servers.items():
                with contextlib.suppress(redis.exceptions.RedisError):  # a fault hits it
                    self._note(name, "", _of_server(find()))

    def _cameras(self, machine: Machine) -> float:
        address = machine.host.address
        return float(sum(camera.proxy.readers(address) for camera in self._load.cameras))

    def _note(self, name: str, life: str, sample: _Sample) -> None:
        now = time.monotonic()
        self._series[name, life].append((now, sample))
        with self._file.open("a") as file:
            file.write(json.dumps({"at": now, "name": name, "life": life, **sample}) + "\n")


def _of_program(pid: int) -> _Sample:
    process = psutil.Process(pid)
    family = [process, *process.children(recursive=True)]
    return {
        "memory_mib": sum(_allocated_kib(each.pid) for each in family) / 1024,
        "threads": sum(each.num_threads() for each in family),
        "descriptors": sum(each.num_fds() for each in family),
    }


def _allocated_kib(pid: int) -> int:
    """Return what a process has allocated, swapped or not.

    The pages of files are left out: how many of them count depends on the other programs that map
    them, also outside the cluster.
    """
    with contextlib.suppress(OSError):  # it has just ended
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        sizes = {name: int(value.split()[0]) for name, value in (each.split(":") for each in lines)}
        return sizes["Pss_Anon"] + sizes["SwapPss"]
    raise psutil.NoSuchProcess(pid)


def _of_server(server: RedisServer) -> _Sample:
    with server.client() as client:
        info = client.info()
    keys, expiring = (info.get("db0", {}).get(name, 0) for name in ("keys", "expires"))
    return {
        CAMERAS: 0.0,
        "memory_mib": int(info["used_memory"]) / 2**20,
        "keys": float(keys),
        "lasting_keys": float(keys - expiring),
    }


def _growth(resource: str, every: Iterable[Sequence[tuple[float, _Sample]]]) -> Growth:
    series = [
        [(at, sample[CAMERAS], sample[resource]) for at, sample in samples] for samples in every
    ]
    values = [value for samples in series for *_, value in samples]
    minutes = [lowest_of_minutes(samples)[_WARM_UP:] for samples in series]
    long = [each for each in minutes if len(each) >= _MIN_MINUTES]
    per_hour, error = slope(long)
    return Growth(
        resource,
        minutes=sum(len(each) for each in long),
        mean=round(float(np.mean(values)), 1),
        highest=round(max(values), 1),
        per_hour=round(per_hour, 1),
        error=round(error, 1),
    )


def lowest_of_minutes(samples: Sequence[_Point]) -> list[_Point]:
    """Return when each whole minute of `samples` began, and the lowest values in it."""
    start = samples[0][0]
    by_minute = groupby(samples, key=lambda sample: (sample[0] - start) // _MINUTE)
    lowest = []
    for minute, group in by_minute:
        _, cameras, values = zip(*group, strict=True)
        lowest.append((start + minute * _MINUTE, min(cameras), min(values)))
    return lowest[:-1]


def slope(series: Sequence[Sequence[_Point]]) -> tuple[float, float]:
    """Return what is added to a value in an hour, and its standard error, by least squares.

    All series have one slope and one amount for each camera, and each has a level of its own.
    """
    if not series:
        return 0.0, 0.0
    centred = [np.array(each, float) - np.mean(each, axis=0) for each in series]
    points = np.concatenate(centred)
    causes, values = points[:, :2], points[:, 2]
    spread = np.linalg.pinv(causes.T @ causes)
    found = spread @ causes.T @ values
    freedom = max(1, len(points) - len(series) - np.linalg.matrix_rank(causes))
    residue = values - causes @ found
    error = float(np.sqrt(residue @ residue / freedom * spread[0, 0]))
    return 3600 * float(found[0]), 3600 * error


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
