"""Run one stream: the job of an ingest slot."""

from collections.abc import Callable

import redis

from streamer.domain.stream import StreamState
from streamer.errors import ErrorCode, StreamerError, Superseded
from streamer.logging_setup import log_about
from workers import context
from workers.ingest.backoff import Backoff
from workers.ingest.failures import unexpected
from workers.ingest.live_run import LiveRun
from workers.ingest.recording_run import RecordingRun
from workers.ingest.status_reporter import StatusReporter
from workers.process import malloc

_NAP = 0.25
"""Seconds between two looks whether to stop."""


def run_stream(stream_id: str) -> None:
    """Run one stream until it is detached or ends. If its run breaks down, say so in its state, and
    start it again with growing pauses.

    Raises GiveBack when the worker stops first; Abandon when another worker runs the stream.
    """
    own, stop = context.current(), context.stop_check()
    pauses = own.connections.outage.pauses()
    backoff = Backoff(own.settings.reconnect_cap)
    try:
        while True:
            began = own.clock.monotonic()
            try:
                _run(own, stream_id, stop)
                return
            except (context.GiveBack, context.Abandon):
                raise
            except Superseded:
                raise context.Abandon from None
            except redis.exceptions.RedisError as error:
                # Giving the job back would fail too: keep the slot until Redis answers.
                own.connections.outage.failed("streams", error)
                pause = next(pauses)
            except Exception as error:
                code = _report(own, stream_id, error)
                backoff.note_uptime(own.clock.monotonic() - began)
                context.place().rest()
                pause = backoff.delay(code)
            _wait(own, pause, stop)
    finally:
        malloc.trim()


def _run(own: context.WorkerContext, stream_id: str, stop: Callable[[], bool]) -> None:
    spec = own.streams.find(stream_id)
    own.connections.outage.worked("streams")
    if spec is not None:
        kind = LiveRun if spec.live else RecordingRun
        with log_about(stream=spec.name):
            kind(own, spec, stop=stop).run()


def _report(own: context.WorkerContext, stream_id: str, error: Exception) -> ErrorCode:
    """Set the state of a stream whose run broke down; return its code."""
    failure = error if isinstance(error, StreamerError) else unexpected(error, stream_id)
    try:
        reporter = StatusReporter(
            own.registry_batch,
            own.streams.status(stream_id),
            stream_id,
            stream_id,
            own.worker_name,
            own.clock,
            own.connections.outage,
            context.token(),
        )
        reporter.enter(StreamState.FAILED, failure)
    except redis.exceptions.RedisError as away:
        own.connections.outage.failed("streams", away)
    except Superseded:
        raise context.Abandon from None
    return failure.code


def _wait(own: context.WorkerContext, seconds: float, stop: Callable[[], bool]) -> None:
    """Wait before the next attempt, and for a slot if the job rests. Raises GiveBack when the
    worker stops meanwhile."""
    until = own.clock.monotonic() + seconds
    while (left := until - own.clock.monotonic()) > 0 or not context.place().resume():
        if stop():
            raise context.GiveBack
        own.clock.sleep(min(_NAP, left) if left > 0 else _NAP)
