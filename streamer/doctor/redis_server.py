"""The Redis servers: there, new enough, near, set up rightly, and on time."""

import time
from collections.abc import Iterable
from statistics import median
from typing import TYPE_CHECKING, Any

from streamer.clock import Clock, SystemClock
from streamer.doctor.check import Check, State, check, size, told
from streamer.errors import StreamerError
from streamer.settings import Settings

if TYPE_CHECKING:
    import redis

_SLOW_REDIS = 0.005
_SKEW_WARN, _SKEW_FAIL = 0.5, 5.0


def servers(settings: Settings, clock: Clock | None = None) -> Iterable[Check]:
    """Every server that the settings name, or the local installation has."""
    urls = _redis_urls(settings)
    if not urls:
        yield _no_redis()
        return
    for name, url in urls.items():
        yield from _server(name, url, clock or SystemClock())


def _redis_urls(settings: Settings) -> dict[str, str]:
    from streamer.connections import read_run_file

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
    return check("redis", "ok", f"None runs here yet; `streamer up` starts {binary.name}.")


def _server(name: str, url: str, clock: Clock) -> Iterable[Check]:
    from redis import Redis
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
    from redis.retry import Retry

    from streamer.media.urls import redact

    shown = redact(url)
    try:
        client = Redis.from_url(
            url,
            socket_connect_timeout=2.0,
            socket_timeout=2.0,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
        )
    except ValueError:
        message = f"'{shown}' is not a Redis address: write redis://host:6379/0."
        yield check(name, "fail", message)
        return
    with client:
        try:
            yield from _reachable(name, shown, client, clock)
        except (RedisError, OSError) as error:
            yield check(
                name,
                "fail",
                f"{shown} does not answer ({told(error)}): check that it runs, its address and "
                "its password.",
            )


def _reachable(name: str, shown: str, client: "redis.Redis", clock: Clock) -> Iterable[Check]:
    info: dict[str, Any] = client.info()
    release = str(info.get("redis_version", "0"))
    product = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {release}"
    if tuple(int(part) for part in release.split(".")[:2]) < (6, 2):
        yield check(name, "fail", f"{shown} is {product}: 6.2 or newer is needed.")
        return
    took, skew = _latency_and_skew(client, clock)
    slow = took > _SLOW_REDIS
    yield check(
        name,
        "warn" if slow else "ok",
        f"{shown}, {product}, answers in {1000 * took:.2f} ms"
        + (": every frame and job passes through it, so move it nearer." if slow else "."),
    )
    yield _memory(name, info)
    if name == "redis":
        yield _clock(skew)
        yield from _workers(client)


def _latency_and_skew(client: "redis.Redis", clock: Clock) -> tuple[float, float]:
    """Seconds that a command takes, and how far the server's clock is ahead of ours."""
    samples = []
    for _ in range(15):
        began, at = time.perf_counter(), clock.time()
        seconds, micros = client.time()
        took = time.perf_counter() - began
        samples.append((took, seconds + micros / 1e6 - (at + took / 2)))
    return median(took for took, _ in samples), min(samples)[1]


def _memory(name: str, info: dict[str, Any]) -> Check:
    policy, most = str(info.get("maxmemory_policy", "")), int(info.get("maxmemory", 0))
    used = int(info.get("used_memory", 0))
    label = name.replace("redis", "redis memory", 1)
    frames_only = name != "redis"
    said = f"{size(used)} used of {size(most) if most else 'unlimited'}, policy {policy}"
    if not frames_only and most and policy != "noeviction":
        return check(
            label,
            "warn",
            f"{said}: when it is full it may throw away jobs and results, so set its "
            "maxmemory-policy to noeviction; frames are bounded by us.",
        )
    if frames_only and not most:
        return check(label, "warn", f"{said}: set maxmemory, so that frames cannot fill it all.")
    return check(label, "ok", f"{said}.")


def _clock(skew: float) -> Check:
    apart = abs(skew)
    if apart < _SKEW_WARN:
        return check("clock", "ok", f"Ours and that of Redis agree to {1000 * apart:.0f} ms.")
    return check(
        "clock",
        "fail" if apart > _SKEW_FAIL else "warn",
        f"Ours and that of Redis are {apart:.1f} s apart: switch on time synchronisation (NTP) on "
        "both machines, or frames expire early and questions about the past miss them.",
    )


def _workers(client: "redis.Redis") -> Iterable[Check]:
    from rq import Queue, worker_registration

    from streamer.jobs import INGEST, QUERIES

    for what, queue, command in (
        ("ingest workers", INGEST, "streamer ingest"),
        ("model workers", QUERIES, "streamer worker"),
    ):
        keys = worker_registration.get_keys(Queue(queue, connection=client))
        count = int(client.exists(*keys)) if keys else 0
        state: State = "ok" if count else "warn"
        missing = f": `{command}` starts one" if not count else ""
        yield check(what, state, f"{count} running{missing}.")
