"""Read the results queue with a consumer group of your own: none is lost.

The queue is the Redis Stream `streamer:results`; this program needs nothing but a Redis client, and
reads the same in any language. Several copies with the same group share the work. A result may come
again after a crash, here or in Redis: where that matters, drop repeats by `request_id`.

    STREAMER_REDIS_URL=redis://:password@10.0.0.5:6379/0 python examples/consume_results.py
"""

import argparse
import json
import os
import socket
from typing import Any

import redis

QUEUE, GROUP = "streamer:results", "example"
CONSUMER = f"{socket.gethostname()}-{os.getpid()}"

parser = argparse.ArgumentParser()
parser.add_argument("--count", type=int, default=0, help="stop after so many; 0: never")
arguments = parser.parse_args()

client = redis.Redis.from_url(os.environ["STREAMER_REDIS_URL"], decode_responses=True, protocol=2)
try:
    # "0": also what was published before this group existed; "$": only what comes from now on
    client.xgroup_create(QUEUE, GROUP, id="0", mkstream=True)
except redis.ResponseError as error:
    if "BUSYGROUP" not in str(error):  # the group exists: continue where it stopped
        raise

handled = 0
while not arguments.count or handled < arguments.count:
    # what a consumer that died did not acknowledge comes first, then what is new
    _, entries, _ = client.xautoclaim(QUEUE, GROUP, CONSUMER, min_idle_time=60_000, count=10)
    if not entries:
        answer: Any = client.xreadgroup(GROUP, CONSUMER, {QUEUE: ">"}, count=10, block=5000)
        entries = answer[0][1] if answer else []
    for entry, fields in entries:
        result = json.loads(fields["json"])
        print(result["stream_name"], result["kind"], result["text"], flush=True)
        client.xack(QUEUE, GROUP, entry)  # only now, so that a crash above loses nothing
        handled += 1
