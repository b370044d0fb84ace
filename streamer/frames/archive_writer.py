"""Write frames to the archive in a thread, so that a camera never waits for a disk."""

import threading
from collections import Counter, deque
from dataclasses import dataclass, field

import structlog

from streamer.clock import Clock, SystemClock
from streamer.domain.frame import FrameRef
from streamer.frames.archive import BUNDLE_SECONDS, Archive

MAX_BUFFERED = 64 << 20
"""Bytes of JPEGs that wait to be written; frames beyond that are dropped and counted."""

_MAX_BUNDLE_BYTES = 16 << 20
_CLEANUP_INTERVAL = 3600.0
_DAY = 86400.0

_log = structlog.get_logger(__name__)


@dataclass
class _Bundle:
    """Frames of one stream that will become one file."""

    since: float
    size: int = 0
    frames: list[tuple[FrameRef, bytes]] = field(default_factory=list)


class ArchiveWriter:
    """Collects the frames of all streams of a process, and writes them a minute at a time.

    Deletes frames older than `days`, once per hour. Thread-safe. Close it to write the last
    minute.
    """

    def __init__(
        self,
        archive: Archive,
        days: float,
        *,
        memory: int = MAX_BUFFERED,
        clock: Clock | None = None,
    ) -> None:
        self._archive = archive
        self._days = days
        self._memory = memory
        self._clock = clock or SystemClock()
        self._lock = threading.Condition()
        self._open: dict[str, _Bundle] = {}
        self._ready: deque[tuple[str, _Bundle]] = deque()
        self._held = 0  # bytes, of open and ready bundles and the one being written
        self._lost: Counter[str] = Counter()
        self._closing = False
        self._next_cleanup = float("-inf")
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="archive", daemon=True)
        self._thread.start()

    def put(self, ref: FrameRef, jpeg: bytes) -> int:
        """Add a frame without waiting; return the stream's dropped frames since the last call."""
        with self._lock:
            if self._closing or self._held + len(jpeg) > self._memory:
                self._lost[ref.stream_id] += 1
            else:
                bundle = self._open.setdefault(ref.stream_id, _Bundle(self._clock.monotonic()))
                bundle.frames.append((ref, jpeg))
                bundle.size += len(jpeg)
                self._held += len(jpeg)
                if bundle.size >= _MAX_BUNDLE_BYTES:
                    self._finish(ref.stream_id)
                elif self._held > self._memory // 2:  # with many streams, the largest does not wait
                    self._finish(max(self._open, key=lambda name: self._open[name].size))
            return self._lost.pop(ref.stream_id, 0)

    def close(self, timeout: float = 3.0) -> None:
        """Write the collected frames and end; give up after `timeout` seconds."""
        with self._lock:
            self._closing = True
            for stream_id in list(self._open):
                self._finish(stream_id)
            self._lock.notify()
        self._thread.join(timeout)
        if self._thread.is_alive():
            _log.warning("archive_not_finished", bytes=self._held)

    @property
    def pending_bytes(self) -> int:
        """Bytes of accepted frames that are not written yet."""
        return self._held

    def __enter__(self) -> "ArchiveWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish(self, stream_id: str) -> None:
        if stream_id in self._open:
            self._ready.append((stream_id, self._open.pop(stream_id)))
            self._lock.notify()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._finish_old()
                if not self._ready and not self._closing:
                    self._lock.wait(timeout=1.0)
                item = self._ready.popleft() if self._ready else None
                if item is None and self._closing:
                    return
            if item is not None:
                self._write(*item)
            self._clean_up()

    def _finish_old(self) -> None:
        now = self._clock.monotonic()
        old = [name for name, b in self._open.items() if now - b.since >= BUNDLE_SECONDS]
        for stream_id in old:
            self._finish(stream_id)

    def _write(self, stream_id: str, bundle: _Bundle) -> None:
        try:
            self._archive.write(stream_id, bundle.frames)
        except Exception as error:  # any error of any file system: the camera continues
            if not self._failing:
                _log.error("archive_failed", reason=f"{type(error).__name__}: {error}")
            self._failing = True
            with self._lock:
                self._lost[stream_id] += len(bundle.frames)
        else:
            if self._failing:
                _log.info("archive_recovered")
            self._failing = False
        finally:
            with self._lock:
                self._held -= bundle.size

    def _clean_up(self) -> None:
        if self._clock.monotonic() < self._next_cleanup:
            return
        self._next_cleanup = self._clock.monotonic() + _CLEANUP_INTERVAL
        try:
            deleted = self._archive.expire(self._clock.time() - self._days * _DAY)
        except Exception as error:
            _log.warning("archive_cleanup_failed", reason=type(error).__name__)
        else:
            if deleted:
                _log.info("archive_cleaned_up", days=deleted)
