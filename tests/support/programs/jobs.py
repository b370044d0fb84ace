"""Run a ThreadWorker whose jobs do what a test needs: note, nap, hold, fail, die and others.

usage: python -m tests.support.programs.jobs QUEUE... [--burst]
The environment gives `SLOTS`, `GRACE`, `POLL` and `STREAMER_LEASE`.
"""

import json
import os
import sys
import threading
import time

import structlog
from rq.job import Job

from streamer.errors import ErrorCode
from streamer.redis_client.connections import Connections
from streamer.settings import Settings
from workers import context
from workers.context import Abandon, BrokeDown, GiveBack, current, last_attempt, place, stop_check
from workers.process import startup
from workers.rq.thread_worker import ThreadWorker

NEWS = "news"
"""A channel: what is published there is noted under the key `heard`."""


def say(key: str, value: str) -> None:
    current().connections.main.rpush(key, value)


def note(name: str) -> None:
    say("ran", name)


def nap(name: str) -> None:
    time.sleep(0.02)
    say("ran", name)


def hold(name: str) -> None:
    """Run until the key `release:NAME` exists; give the job back if asked to stop."""
    say("started", name)
    stop = stop_check()
    while not current().connections.main.exists(f"release:{name}"):
        if stop():
            say("stopped", name)
            raise GiveBack
        time.sleep(0.02)
    say("ran", name)


def rest(name: str) -> None:
    """Rest until the key `release:NAME` exists, and a slot is free."""
    say("started", name)
    stop = stop_check()
    place().rest()
    while not current().connections.main.exists(f"release:{name}") or not place().resume():
        if stop():
            say("stopped", name)
            raise GiveBack
        time.sleep(0.02)
    say("ran", name)


def stubborn(name: str) -> None:
    say("started", name)
    time.sleep(120)


def boom(name: str) -> None:
    raise RuntimeError("cannot open rtsp://admin:s3cret@camera/live")


def die(name: str) -> None:
    say("started", name)
    os._exit(9)


def abandon(name: str) -> None:
    say("started", name)
    raise Abandon


def break_down(name: str) -> None:
    """Fail in every attempt, as a job does whose engine breaks down."""
    say("started", f"{name}, alone" if last_attempt() else name)
    raise BrokeDown


def on_failed(job: Job, code: ErrorCode, message: str) -> None:
    say("failed", json.dumps([job.id, code, message]))


MODULE = "tests.support.programs.jobs"
"""Name of this module in a job; run as a program, it is `__main__`."""

FUNCTIONS = {
    f"{MODULE}.{function.__name__}": function
    for function in (note, nap, hold, rest, stubborn, boom, die, abandon, break_down)
}


def serve(settings: Settings, stopping: threading.Event) -> None:
    arguments = sys.argv[1:]
    with Connections(settings) as connections:
        context.install(
            context.WorkerContext(settings=settings, connections=connections, stopping=stopping)
        )
        worker = ThreadWorker(
            [name for name in arguments if not name.startswith("--")],
            connections.main,
            slots=int(os.environ.get("SLOTS", "4")),
            functions=FUNCTIONS,
            stopping=stopping,
            lease=settings.lease,
            on_failed=on_failed,
            grace=float(os.environ.get("GRACE", "3")),
            poll=float(os.environ.get("POLL", "0.2")),
            channels={NEWS: lambda message: say("heard", message.decode())},
        )
        worker.work(
            burst="--burst" in arguments,
            on_ready=lambda: structlog.get_logger().info("ready", worker=worker.name),
        )


if __name__ == "__main__":
    startup.exit_process(startup.run_program("jobs", serve))
