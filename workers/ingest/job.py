"""Run one stream: the job of an ingest slot."""

import time

import redis

from workers import context
from workers.ingest.live_run import LiveRun
from workers.ingest.recording_run import RecordingRun
from workers.process import malloc

_NAP = 0.25
"""Seconds between two looks whether to stop."""


def run_stream(stream_id: str) -> None:
    """Run one stream until it is detached or ends.

    Raises GiveBack when the worker stops first.
    """
    own, stop = context.current(), context.stop_check()
    outage = own.connections.outage
    try:
        for pause in outage.pauses():
            try:
                spec = own.streams.find(stream_id)
                outage.worked("streams")
                if spec is not None:
                    kind = LiveRun if spec.live else RecordingRun
                    kind(own, spec, stop=stop).run()
                return
            except redis.exceptions.RedisError as error:
                # Giving the job back would fail too: keep the slot until Redis answers.
                outage.failed("streams", error)
            until = time.monotonic() + pause
            while (left := until - time.monotonic()) > 0:
                if stop():
                    raise context.GiveBack
                time.sleep(min(_NAP, left))
    finally:
        malloc.trim()
