"""Check the Redis servers: reachable, version, latency, memory policy, clock and workers."""

import time
from collections.abc import Iterable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, cast

from streamer import redis_keys
from streamer.clock import MAX_OFFSET, Clock, SystemClock
from streamer.doctor.check import Check, State, check, describe_error, format_size
from streamer.domain.timestamp import rfc3339, to_datetime
from streamer.errors import StreamerError
from streamer.settings import Settings

if TYPE_CHECKING:
    import redis

    from streamer.redis_client.access import RedisPart

_TIMEOUT = 2.0
"""Seconds that a server has to answer."""

_MAX_LATENCY = 0.005
"""Seconds that a command may take without a warning."""

_MAX_BEHIND = 60.0
"""Seconds that a result may be unrecorded without a warning."""

_REPORTED_FOR = 86_400.0
"""Seconds for which a loss of results is reported."""

_MAX_SKEW_OK, _MAX_SKEW = 0.5, 5.0
"""Seconds that the clocks may differ without a warning, and without a failure."""


def servers(settings: Settings, clock: Clock | None = None) -> Iterable[Check]:
    """Check every server that the settings or the local installation name."""
    urls = _redis_urls(settings)
    if not urls:
        yield _no_redis()
        return
    for name, url in urls.items():
        parts: list[RedisPart] = ["frames"] if name != "redis" else ["jobs"]
        if len(urls) == 1:
            parts.append("frames")
        yield from _server(name, url, clock or SystemClock(), parts)


def _redis_urls(settings: Settings) -> dict[str, str]:
    from streamer.redis_client.connections import read_run_file

    main, frames = settings.redis_url, settings.frames_redis_url
    if main is None:
        try:
            run = read_run_file(settings)
        except StreamerError:
            return {}
        main, frames = run["redis_url"], frames or run.get("frames_redis_url")
    urls = {"redis": main or ""}
    if frames and frames != main:
        urls["redis (frames)"] = frames
    return urls


def _no_redis() -> Check:
    from streamer.local.redis_server import server_binary

    try:
        binary = server_binary()
    except StreamerError as error:
        return check("redis", "fail", error.message)
    return check("redis", "ok", f"No server is running yet: `streamer up` starts {binary.name}.")


def _server(name: str, url: str, clock: Clock, parts: "Sequence[RedisPart]") -> Iterable[Check]:
    from redis.exceptions import RedisError

    from streamer.media.urls import redact
    from streamer.redis_client.address import open_redis
    from streamer.redis_client.connections import reach

    try:
        reach(url, timeout=_TIMEOUT)
    except StreamerError as error:
        yield check(name, "fail", error.message)
        return
    shown = redact(url)
    with open_redis(url, connect_timeout=_TIMEOUT, timeout=_TIMEOUT) as client:
        try:
            yield from _examined(name, shown, client, clock, parts)
        except (RedisError, OSError) as error:
            yield check(name, "fail", f"{shown} failed ({describe_error(error)}): try again.")


def _examined(
    name: str, shown: str, client: "redis.Redis", clock: Clock, parts: "Sequence[RedisPart]"
) -> Iterable[Check]:
    from redis.exceptions import RedisError

    from streamer.redis_client.access import examine_server, read_info, require_writable
    from streamer.redis_client.errors import trouble_of
    from streamer.redis_client.memory_reserve import require_room

    info = read_info(client) or {}
    release = str(info.get("redis_version", "of an unknown version"))
    product = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {release}"
    took, skew = _latency_and_skew(client, clock)
    slow = took > _MAX_LATENCY
    yield check(
        name,
        "warn" if slow else "ok",
        f"{shown}, {product}, answers in {1000 * took:.2f} ms"
        + (": move it closer, because every frame and job passes through it." if slow else "."),
    )
    try:
        require_writable(client, ())
        if "jobs" in parts:
            require_room(client)
    except RedisError as error:
        yield check(f"{name} writes", "fail", trouble_of(error).message)
    lacks = examine_server(client, parts)
    if info:
        yield _memory(name, info)
    for lack in lacks:
        if lack.kind in ("rights", "info"):
            yield check(f"{name} user", "fail" if lack.kind == "rights" else "warn", lack.message)
    if "jobs" in parts:
        yield _clock(skew)
        yield from _workers(client)


def _latency_and_skew(client: "redis.Redis", clock: Clock) -> tuple[float, float]:
    """Measure the seconds that a command takes and that the server's clock is ahead."""
    samples = []
    for _ in range(15):
        began, at = time.perf_counter(), clock.time()
        seconds, micros = client.time()
        took = time.perf_counter() - began
        samples.append((took, seconds + micros / 1e6 - (at + took / 2)))
    return median(took for took, _ in samples), min(samples)[1]


def _memory(name: str, info: dict[str, Any]) -> Check:
    policy, limit = str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0))
    used = int(info.get("used_memory", 0))
    label = name.replace("redis", "redis memory", 1)
    frames_only = name != "redis"
    total = f"of {format_size(limit)}" if limit else "without a limit"
    usage = f"{format_size(used)} used {total}, policy {policy}"
    if not frames_only and limit and policy != "noeviction":
        return check(
            label,
            "warn",
            f"{usage}: set maxmemory-policy to noeviction, or a full server evicts jobs and "
            "results; the service bounds the frames itself.",
        )
    if frames_only and not limit:
        return check(label, "warn", f"{usage}: set maxmemory, or frames may fill the memory.")
    return check(label, "ok", f"{usage}.")


def _clock(skew: float) -> Check:
    skew = abs(skew)
    if skew < _MAX_SKEW_OK:
        return check(
            "clock", "ok", f"The clocks of this machine and Redis differ by {1000 * skew:.0f} ms."
        )
    return check(
        "clock",
        "fail" if skew > _MAX_SKEW else "warn",
        f"The clocks of this machine and Redis differ by {skew:.1f} s: enable time "
        "synchronization (NTP) on both. The service goes by Redis, but the times in logs differ.",
    )


def _workers(client: "redis.Redis") -> Iterable[Check]:
    from rq import Queue, worker_registration

    from streamer.queues.jobs import INGEST
    from streamer.queues.models import QUERIES

    for name, queue, command in (
        ("ingest workers", INGEST, "streamer ingest"),
        ("model workers", QUERIES, "streamer worker"),
    ):
        keys = worker_registration.get_keys(Queue(queue, connection=client))
        count = int(client.exists(*keys)) if keys else 0
        state: State = "ok" if count else "warn"
        advice = f"{_last_seen(client, name[:-1])}: start one with `{command}`" if not count else ""
        if not count and queue == QUERIES and client.exists(redis_keys.LOADING):
            advice = ", one is loading its model: wait until it is ready"
        yield check(name, state, f"{count} running{advice}.")
    yield from _sick_gpus(client)
    yield from _workers_clocks(client)


def _sick_gpus(client: "redis.Redis") -> Iterable[Check]:
    """Report the GPUs that their supervisors have taken out of service."""
    from streamer.health.sick_gpus import SickGpus

    for sick in SickGpus(client).read(client.time()[0]):
        yield check(
            f"GPU {sick.gpu}",
            "warn",
            f"Out of service on {sick.host} since {rfc3339(to_datetime(sick.since))}, tried again "
            f"at {rfc3339(to_datetime(sick.retry_at))}: its model worker failed too often (the "
            f"last time: {sick.reason.rstrip('.')}). Look at `nvidia-smi` and the worker's log.",
        )


def _workers_clocks(client: "redis.Redis") -> Iterable[Check]:
    """Report the machines whose clocks are far from that of Redis."""
    from rq import worker_registration

    from streamer import redis_keys

    names = sorted(key.rpartition(":")[2] for key in worker_registration.get_keys(None, client))
    with client.pipeline(transaction=False) as pipeline:
        for name in names:
            pipeline.hget(redis_keys.worker(name), "clock_offset_seconds")
        offsets = {
            name: float(raw or 0) for name, raw in zip(names, pipeline.execute(), strict=True)
        }
    wrong = [f"{name} ({off:+.1f} s)" for name, off in offsets.items() if abs(off) > MAX_OFFSET]
    if wrong:
        yield check(
            "clocks of workers",
            "warn",
            f"The clocks of these machines differ from Redis: {', '.join(wrong)}. Enable time "
            "synchronization (NTP) there; the service goes by Redis.",
        )
    yield from _recorder(client)


def _recorder(client: "redis.Redis") -> Iterable[Check]:
    """Report whether a recorder runs, how far it is behind, and what was given up."""
    from streamer.queues.results_queue import read_backlog

    backlog = read_backlog(client)
    now = client.time()[0]
    behind = backlog.oldest is not None and now - backlog.oldest > _MAX_BEHIND
    waiting = "Results" if backlog.results is None else f"{backlog.results} results"
    if client.exists(redis_keys.RECORDER):
        yield check("recorder", "ok", "A recorder is running.")
    else:
        seen = _last_seen(client, "recorder")
        message = f"None is running{seen}, so new results are missing from the timeline"
        yield check("recorder", "warn", f"{message}: start one with `streamer record`.")
    if behind and backlog.oldest is not None:
        yield check(
            "results",
            "warn",
            f"{waiting} are not in the timeline yet, the oldest of "
            f"{rfc3339(to_datetime(backlog.oldest))}. They are kept in Redis, up to "
            "results_max_bytes: see the log of the recorder, or start another.",
        )
    if backlog.lost_at is not None and now - backlog.lost_at < _REPORTED_FOR:
        yield check(
            "lost results",
            "warn",
            f"{backlog.lost} results were given up before they were recorded, the last at "
            f"{rfc3339(to_datetime(backlog.lost_at))}: keep a recorder running, or raise "
            "results_max_bytes.",
        )


def _last_seen(client: "redis.Redis", name: str) -> str:
    raw = cast(bytes | None, client.hget(redis_keys.LAST_SEEN, name))
    return f" (last seen {rfc3339(to_datetime(float(raw)))})" if raw is not None else ""
