"""Select frames of a past range from Redis or the archive."""

from dataclasses import dataclass
from functools import cached_property

import redis

from streamer.clock import Clock, SystemClock
from streamer.domain.frame import FrameRef, Gap
from streamer.domain.stream import Stream
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.archive import Archive, ArchivedFrame
from streamer.frames.coverage import (
    NEWEST,
    find_gaps,
    max_silence,
    sampling_interval,
    tier_slot,
)
from streamer.frames.selection import select_frames
from streamer.frames.store import FrameStore, Retention
from streamer.redis_client.connections import Connections, from_run_file
from streamer.redis_client.errors import REDIS_FULL_MESSAGE, is_full
from streamer.settings import Settings

RESTORED_SECONDS = 3600.0
"""How long frames restored from the archive stay in Redis for the model workers."""

_MAX_RESTORED = 4096
"""Restored frames of one stream."""


@dataclass(frozen=True)
class Selection:
    """The frames for a question about a range, oldest first, and the parts without a frame."""

    frames: list[FrameRef]
    gaps: list[Gap]


class FrameHistory:
    """Selects the frames for a question about a past range.

    The archive, if there is one, is read only if Redis does not reach back far enough. Frames from
    it are restored to Redis for a while, as a stream of their own with its own bounds, so that
    model workers need no access to the archive.
    """

    def __init__(
        self,
        connections: Connections,
        settings: Settings,
        frames: FrameStore,
        *,
        clock: Clock | None = None,
    ) -> None:
        self._connections = connections
        self._settings = settings
        self.frames = frames
        self._clock = clock or SystemClock()
        self._retention = Retention.of(settings)
        self._archive_url = settings.archive_url or from_run_file(settings, "archive_url")

    def select(self, stream: Stream, since: float, until: float, count: int) -> Selection:
        """Select at most `count` frames captured in `[since, until)` (epoch seconds).

        See :func:`streamer.frames.selection.select_frames`.

        Raises StreamerError(ARCHIVE_UNAVAILABLE | REDIS_FULL).
        """
        kept = self.frames.between(stream.id, since, until)
        archived = self._archived(stream.id, since, until, count)
        older = [frame.ref for frame in archived.values()]
        found = select_frames([*older, *kept], count)
        if not self._all_there([ref for ref in found if ref.id not in archived]):
            kept = self.frames.present(kept)  # some have just been evicted
            found = select_frames([*older, *kept], count)
        found = [self._without_predecessor(stream, ref, ref.id in archived) for ref in found]
        gaps = self._gaps(stream, kept, since, until, bool(archived))
        return Selection(self._restore(stream.id, found, archived), gaps)

    def _gaps(
        self, stream: Stream, kept: list[FrameRef], since: float, until: float, archived: bool
    ) -> list[Gap]:
        """Return the parts of a range of which neither Redis nor the archive has frames."""
        if not stream.live:
            return []  # frames of a recording are dated by their place in it
        covered = [(ref.time, ref.time) for ref in kept]
        if archived:
            covered += self._archive.covered(stream.id, since, until)
        interval = sampling_interval(stream.sampling, kept[-NEWEST:])
        history = self._settings.history if stream.history is None else stream.history
        tiers = self._retention.tiers if history else ()
        now = self._clock.time()

        def limit(moment: float) -> float:
            return max_silence(max(interval, tier_slot(tiers, now - moment)))

        return find_gaps(covered, since, min(until, now), limit)

    @staticmethod
    def restored_id(stream_id: str) -> str:
        """Return the id under which restored frames of a stream are stored."""
        return f"{stream_id}-past"

    def forget(self, stream_id: str) -> None:
        """Delete the restored frames of a stream that was detached."""
        self.frames.discard(self.restored_id(stream_id))

    def _all_there(self, refs: list[FrameRef]) -> bool:
        return len(self.frames.present(refs)) == len(refs)

    def _archived(
        self, stream_id: str, since: float, until: float, count: int
    ) -> dict[str, ArchivedFrame]:
        """Return archived frames older than those in Redis, by id."""
        if self._archive_url is None:
            return {}
        span = self.frames.span(stream_id)
        end = until if span is None else min(until, span[0])
        if since >= end:
            return {}
        found = self._archive.between(stream_id, since, end, count)
        return {frame.ref.id: frame for frame in found}

    def _restore(
        self, stream_id: str, chosen: list[FrameRef], archived: dict[str, ArchivedFrame]
    ) -> list[FrameRef]:
        old = [ref for ref in chosen if ref.id in archived]
        jpegs = self._archive.load([archived[ref.id] for ref in old]) if old else []
        restored: dict[str, FrameRef] = {}
        for ref, jpeg in zip(old, jpegs, strict=True):
            try:
                restored[ref.id] = self._restored.put(
                    self.restored_id(stream_id),
                    jpeg,
                    ref.measures,
                    time=ref.time,
                    pts=ref.pts,
                    decode_ms=ref.decode_ms,
                )
            except redis.exceptions.RedisError as error:
                if not is_full(error):
                    raise
                raise StreamerError(ErrorCode.REDIS_FULL, REDIS_FULL_MESSAGE) from None
        return [restored.get(ref.id, ref) for ref in chosen]

    def _without_predecessor(self, stream: Stream, ref: FrameRef, archived: bool) -> FrameRef:
        """Mark a frame as entirely changed if the frame that it was compared with may be gone."""
        dense_since = self._clock.time() - self._settings.frame_ttl
        if not archived and not (stream.live and ref.time < dense_since):
            return ref
        return ref.model_copy(update={"change": 1.0, "fresh": ref.detail})

    @cached_property
    def _archive(self) -> Archive:
        assert self._archive_url is not None
        return Archive(self._archive_url)

    @cached_property
    def _restored(self) -> FrameStore:
        retention = Retention(
            age=RESTORED_SECONDS,
            max_frames=_MAX_RESTORED,
            max_bytes=self._settings.frame_bytes_per_stream,
        )
        connections = self._connections
        return FrameStore(
            connections.frames, retention, memory=connections.frame_memory, clock=self._clock
        )
