"""Run stream jobs: each slot decodes one stream."""

import threading
from contextlib import ExitStack

import cv2
import redis
import structlog

from streamer.connections import Connections
from streamer.frames.archive import Archive
from streamer.frames.archive_writer import ArchiveWriter
from streamer.jobs import INGEST, INGEST_JOB
from streamer.settings import Settings
from workers import context
from workers.ingest.job import run_stream
from workers.process import malloc
from workers.rq.thread_worker import ThreadWorker

_log = structlog.get_logger(__name__)


def serve_streams(settings: Settings, stopping: threading.Event) -> None:
    """Run streams until `stopping` is set. Raises StreamerError if Redis does not answer."""
    malloc.limit_arenas()
    cv2.setNumThreads(1)  # the slots are the threads: more of them, from OpenCV, only compete
    with Connections(settings) as connections, ExitStack() as stack:
        own = context.WorkerContext(settings=settings, connections=connections, stopping=stopping)
        context.install(own)
        if settings.archive_url is not None:
            archive = Archive(settings.archive_url)
            archive.require_writable()
            own.archive = stack.enter_context(ArchiveWriter(archive, settings.archive_days))
        _prepare(own)
        worker = ThreadWorker(
            [INGEST],
            connections.main,
            slots=settings.ingest_slots,
            functions={INGEST_JOB: run_stream},
            stopping=stopping,
            lease=settings.lease,
            on_failed=lambda job, _code, message: _log.error(
                "stream_given_up", job=job.id, reason=message
            ),
        )
        own.worker_name = worker.name
        worker.work(
            on_ready=lambda: _log.info("ready", worker=worker.name, slots=settings.ingest_slots)
        )


def _prepare(own: context.WorkerContext) -> None:
    """Log what a person should correct, and seal all secrets with the first key."""
    try:
        advice = own.connections.memory_advice()
        unreadable = own.streams.seal_all()
    except redis.exceptions.RedisError as error:
        _log.warning("redis_away", reason=type(error).__name__)
        return
    if advice is not None:
        _log.warning("redis_memory", advice=advice)
    if unreadable:
        _log.error(
            "secrets_unreadable",
            streams=unreadable,
            advice="Set STREAMER_SECRET_KEY to the key with which they were attached.",
        )
