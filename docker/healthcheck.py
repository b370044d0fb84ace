"""Check the health of one container: `healthcheck.py api|ingest|worker|recorder [--alive]`.

The exit code is 0 if it is healthy. The API must answer `/healthz`. A worker must have sent a
heartbeat from this host recently, and the recorder must have asked for results recently; both are
checked in Redis, so that a process that hangs is detected. With `--alive` it is also healthy while
Redis cannot be asked: the programs wait for it, and to restart them would not help.
"""

import os
import socket
import sys
import urllib.request
from datetime import UTC, datetime

HEARTBEAT_LIMIT = 90.0
"""Seconds without a sign of life after which a process counts as hung."""

QUEUES = {"ingest": "ingest", "worker": "queries"}


def api() -> bool:
    """Return whether the API of this container answers."""
    port = os.environ.get("STREAMER_API_PORT", "8080")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5) as answer:
        return bool(answer.status == 200)


def worker(queue: str) -> bool:
    """Return whether a worker of `queue` on this host has sent a heartbeat recently."""
    from rq import Worker

    from streamer.redis_client.connections import connect

    client = connect(os.environ["STREAMER_REDIS_URL"])
    now = datetime.now(UTC)
    for found in Worker.all(connection=client):
        if found.hostname == socket.gethostname() and queue in found.queue_names():
            last = found.last_heartbeat
            if last is not None and (now - last).total_seconds() < HEARTBEAT_LIMIT:
                return True
    return False


def recorder() -> bool:
    """Return whether a recorder on this host has read the results queue recently."""
    from streamer.redis_client.connections import connect
    from streamer.redis_keys import RESULTS

    client = connect(os.environ["STREAMER_REDIS_URL"])
    host = socket.gethostname().encode()
    return any(
        host in consumer["name"] and consumer["idle"] < HEARTBEAT_LIMIT * 1000
        for consumer in client.xinfo_consumers(RESULTS, "recorder")
    )


def redis_answers() -> bool:
    """Return whether Redis does what it is asked."""
    import redis

    from streamer.errors import StreamerError
    from streamer.redis_client.connections import connect

    try:
        return bool(connect(os.environ["STREAMER_REDIS_URL"]).ping())
    except (StreamerError, redis.exceptions.RedisError):
        return False


def main() -> int:
    """Run the check that the command line names."""
    what, *options = sys.argv[1:] or [""]
    if what not in ("api", "recorder", *QUEUES) or options not in ([], ["--alive"]):
        print(__doc__, file=sys.stderr)
        return 2
    if options and what != "api" and not redis_answers():
        print(f"{what}: waits for Redis")
        return 0
    try:
        healthy = (
            api() if what == "api" else recorder() if what == "recorder" else worker(QUEUES[what])
        )
    except Exception as error:  # after any error the container is not healthy
        print(f"{what}: {type(error).__name__}", file=sys.stderr)
        return 1
    print(f"{what}: {'healthy' if healthy else 'no recent sign of life'}")
    return 0 if healthy else 1


if __name__ == "__main__":
    sys.exit(main())
