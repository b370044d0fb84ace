"""Run stream jobs: each slot decodes one stream."""

import threading
from contextlib import ExitStack

import structlog

from streamer import redis_keys
from streamer.file_pages import release_when_idle
from streamer.frames.archive import Archive
from streamer.frames.archive_writer import ArchiveWriter
from streamer.logging_setup import log_ready
from streamer.queues.jobs import INGEST, INGEST_JOB
from streamer.redis_client.connections import Connections, log_lacks
from streamer.redis_client.record_version import join_records
from streamer.settings import Settings
from streamer.sources.files import Files
from workers import context
from workers.ingest.balance import Balance
from workers.ingest.lost_streams import LostStreams
from workers.ingest.moved_cameras import MovedCameras
from workers.rq.thread_worker import ThreadWorker

_log = structlog.get_logger(__name__)


def serve_streams(settings: Settings, stopping: threading.Event) -> None:
    """Run streams until `stopping` is set. Raises StreamerError if Redis does not answer."""
    with Connections(settings, patient=True) as connections, ExitStack() as stack:
        join_records(connections.main)
        log_lacks(connections)
        own = context.WorkerContext(
            settings=settings,
            connections=connections,
            stopping=stopping,
            clock=connections.clock,
        )
        context.install(own)
        if settings.archive_url is not None:
            archive = Archive(settings.archive_url)
            archive.require_writable()
            own.archive = stack.enter_context(
                ArchiveWriter(archive, settings.archive_days, clock=own.clock)
            )
        _seal_secrets(own)
        lost, files = LostStreams(own.streams, own.jobs, own.clock), Files(settings)
        moved = MovedCameras(connections.main, own.streams, settings.find_moved_after, own.clock)
        stack.callback(moved.close)

        def sweep() -> None:
            lost.sweep()
            moved.sweep()
            files.sweep()

        worker = ThreadWorker(
            [INGEST],
            connections.main,
            slots=settings.ingest_slots,
            functions={INGEST_JOB: _run_stream},
            stopping=stopping,
            lease=settings.lease,
            on_failed=lambda job, _code, message: _log.error(
                "stream_given_up", job=job.id, reason=message
            ),
            sweep=sweep,
            defer=lambda: balance.defers(),
            outage=connections.outage,
            clock=own.clock,
            channels={
                redis_keys.STREAM_EDITED: lambda stream_id: own.registry_batch.note_edit(
                    stream_id.decode(errors="replace")
                )
            },
            measure=lambda: {
                "clock_offset_seconds": connections.clock.offset,
                **own.video_numbers(),
            },
        )
        balance = Balance(
            connections.main,
            worker.queues[0],
            worker,
            late=lambda: own.late_frames,
            lease=settings.lease,
        )
        own.worker_name = worker.name

        def ready() -> None:
            log_ready(worker=worker.name, slots=settings.ingest_slots)
            release_when_idle()

        worker.work(on_ready=ready)


def _run_stream(stream_id: str) -> None:
    """Run one stream. What decodes video is imported with the first: an idle worker lacks it."""
    import cv2

    from workers.ingest.job import run_stream

    cv2.setNumThreads(1)  # the slots are the threads: more of them, from OpenCV, only compete
    run_stream(stream_id)


def _seal_secrets(own: context.WorkerContext) -> None:
    """Encrypt all secrets with the first key, once Redis lets us write."""
    unreadable = own.connections.outage.insist("secrets", own.streams.seal_all, own.stopping.wait)
    if unreadable:
        _log.error(
            "secrets_unreadable",
            streams=unreadable,
            advice="Set STREAMER_SECRET_KEY to the key with which they were attached.",
        )
