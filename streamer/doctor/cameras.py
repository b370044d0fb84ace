"""Look for cameras whose address has changed."""

from collections.abc import Iterable

from streamer.doctor.check import Check, check, describe_error
from streamer.errors import StreamerError
from streamer.settings import Settings


def moved(settings: Settings) -> Iterable[Check]:
    """Search for the cameras of lost streams near the address that each had.

    Check only streams with an endpoint reference. Yield nothing if none is lost.
    """
    from redis.exceptions import RedisError

    from streamer.redis_client.address import open_redis
    from streamer.redis_client.connections import from_run_file
    from streamer.sources.discovery import find_moved
    from streamer.sources.streams import StreamRegistry

    try:
        url = settings.redis_url or from_run_file(settings, "redis_url")
        if url is None:
            return
        with open_redis(url, connect_timeout=2.0, timeout=2.0) as client:
            streams = StreamRegistry(client).list()
    except (StreamerError, RedisError, OSError):
        return  # the check of Redis tells
    try:
        found = find_moved(streams)
    except (StreamerError, OSError) as error:
        yield check("cameras", "warn", f"They cannot be searched for: {describe_error(error)}.")
        return
    for name, address in found.items():
        how = (
            f"give the stream its new URL with `streamer edit {name} --url URL`"
            if settings.find_moved_after is None
            else "an ingest worker gives the stream that address in a few minutes"
        )
        yield check(
            f"camera {name}",
            "warn",
            f"It is at {address} now: {how}. Keep the address of the camera fixed in your router.",
        )
