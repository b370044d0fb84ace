"""Let programs of different releases share a Redis for one release, and no longer.

A release that stores something which the release before would read wrongly raises RECORD_VERSION;
fields and words that an older reader passes over do not count. Each Redis holds the highest version
of the programs that have used it, and each job the lowest that can answer it.
"""

import redis
import structlog

from streamer import redis_keys
from streamer.errors import ErrorCode, StreamerError
from streamer.redis_client.memory_reserve import in_reserve

RECORD_VERSION = 2
"""That of this release. 1: release 0.1.0, whose records have no version."""

_log = structlog.get_logger(__name__)


def require_readable(version: int) -> None:
    """Raise StreamerError(RECORD_UNREADABLE) if this release does not read records of `version`:
    those of the next release are the last."""
    if version > RECORD_VERSION + 1:
        raise StreamerError(
            ErrorCode.RECORD_UNREADABLE,
            f"The records in this Redis are of a newer release (version {version}; this program "
            f"reads up to {RECORD_VERSION + 1}): upgrade this program.",
        )


def join_records(client: redis.Redis) -> None:
    """Check that this program reads the records of this Redis, and note that it writes there.

    Raises StreamerError(RECORD_UNREADABLE).
    """
    try:
        stored: bytes | None = client.get(redis_keys.RECORD_VERSION_KEY)  # type: ignore[assignment]
        version = int(stored or 1)
        require_readable(version)
        if version > RECORD_VERSION:
            _log.warning(
                "records_of_a_newer_release",
                version=version,
                own=RECORD_VERSION,
                advice="Upgrade this program soon: the release after that it cannot read.",
            )
        elif version < RECORD_VERSION:
            in_reserve(client).set(redis_keys.RECORD_VERSION_KEY, RECORD_VERSION)
    except (redis.exceptions.RedisError, ValueError):
        return  # an outage, which the program waits out; or no version, so nothing to go by
