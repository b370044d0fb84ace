"""Check for how long the frames of the attached streams are kept."""

from collections.abc import Iterable

from streamer.doctor.check import Check, check
from streamer.errors import ErrorCode, StreamerError
from streamer.settings import Settings

_MAX_NAMED = 5
"""Streams that are named in one sentence."""


def spans(settings: Settings) -> Iterable[Check]:
    """Name the span of the stream whose frames are kept for the shortest time, and those whose
    frames are kept too short. Yield nothing without frames of a live stream."""
    from redis.exceptions import RedisError

    from streamer.frames.kept import note_kept
    from streamer.frames.store import FrameStore, Retention
    from streamer.redis_client.address import open_redis
    from streamer.redis_client.connections import from_run_file
    from streamer.sources.streams import StreamRegistry

    try:
        main = settings.redis_url or from_run_file(settings, "redis_url")
        if main is None:
            return
        url = settings.frames_redis_url or from_run_file(settings, "frames_redis_url") or main
        with (
            open_redis(main, connect_timeout=2.0, timeout=2.0) as client,
            open_redis(url, connect_timeout=2.0, timeout=2.0) as frames,
        ):
            streams = [stream for stream in StreamRegistry(client).list() if stream.live]
            seconds, microseconds = frames.time()
            now = seconds + microseconds / 1e6
            note_kept(FrameStore(frames, Retention.of(settings)), streams, now)
    except (StreamerError, RedisError, OSError):
        return  # the check of Redis tells
    ages = {s.name: s.kept_seconds for s in streams if s.kept_seconds is not None}
    if not ages:
        return
    short = [
        stream.name
        for stream in streams
        if any(warning.code is ErrorCode.FRAMES_KEPT_SHORT for warning in stream.warnings)
    ]
    if short:
        names = ", ".join(short[:_MAX_NAMED]) + (", ..." if len(short) > _MAX_NAMED else "")
        yield check(
            "frames kept",
            "warn",
            f"Less than two windows of a watch are kept of {names}, so some frames are gone before "
            "they are asked about: raise frames_memory, frames_per_stream or Redis's maxmemory, or "
            "lower jpeg_quality.",
        )
        return
    name = min(ages, key=lambda each: ages[each] or 0.0)
    yield check(
        "frames kept",
        "ok",
        f"The shortest span is that of {name}: {ages[name]:.0f} s.",
    )
