"""Store sampled frames as JPEGs in Redis, bounded by age, number and bytes."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis
import structlog
from redis.commands.core import Script

from nvila_core.resolution.policy import Measures
from streamer import redis_keys
from streamer.clock import Clock, SystemClock
from streamer.domain.frame import FrameRef
from streamer.domain.stream import StreamSpec
from streamer.errors import ErrorCode, StreamerError, Superseded
from streamer.frames import scripts
from streamer.frames.sampled_frame import SampledFrame
from streamer.redis_client.errors import is_full
from streamer.settings import Settings

_log = structlog.get_logger(__name__)

TIERS = ((0.0, 10.0), (3600.0, 60.0), (86400.0, 600.0))
"""Tiers (age, slot), in seconds: of the frames older than both `Retention.age` and `age`, only the
one that changed most stays in each slot of time."""

_PAGE = 256

_MAX_EXPIRED = 3
"""Expired frames that are passed over in the search for the oldest."""

_MIN_ROOM = 4 << 20
"""Bytes of old frames to delete at once when the server is full."""

_FULL = "Redis is full of data other than frames: raise its maxmemory"

_OVERHEAD = 500
"""Bytes, approximate, that Redis needs for a frame besides its JPEG and its reference."""


@dataclass(frozen=True)
class Retention:
    """How much of a stream is kept.

    Every frame stays for `age` seconds, and thinned frames (`tiers`) for `history` seconds, but
    never more than `max_frames` or `max_bytes`: the oldest frames go first. With a history, frames
    are thinned early when those younger than `age` would fill more than half of these bounds. The
    newest `min_frames` are exempt from `max_bytes` and from early thinning.
    """

    age: float
    max_frames: int
    max_bytes: int = 1 << 40
    history: float = 0.0
    min_frames: int = 0
    tiers: tuple[tuple[float, float], ...] = TIERS

    @classmethod
    def of(cls, settings: Settings) -> "Retention":
        """Return the retention of a live stream without its own history."""
        return cls(
            age=settings.frame_ttl,
            max_frames=settings.frames_per_stream,
            max_bytes=settings.frame_bytes_per_stream,
            history=settings.history,
        )

    @classmethod
    def of_stream(cls, spec: StreamSpec, settings: Settings, needed: int) -> "Retention":
        """Return the retention of `spec`; clips refer to its newest `needed` frames."""
        ttl = settings.frame_ttl if spec.live else settings.recorded_frame_ttl
        longest = max((watch.window for watch in spec.watches), default=0.0)
        history = settings.history if spec.history is None else spec.history
        return cls(
            age=max(ttl, 2 * longest),
            max_frames=max(settings.frames_per_stream, needed),
            max_bytes=settings.frame_bytes_per_stream,
            history=history if spec.live else 0.0,
            min_frames=needed,
        )

    @property
    def lifetime(self) -> float:
        """Seconds after which every frame is deleted."""
        return max(self.age, self.history)

    def tier_milliseconds(self) -> list[int]:
        """Return age and slot of each tier that applies, in milliseconds, one after the other."""
        if self.history <= self.age:
            return []
        return [
            round(1000 * value)
            for since, slot in self.tiers
            for value in (max(since, self.age), slot)
            if since < self.history
        ]


class FrameStore:
    """Stored frames, by stream and capture time.

    The frames of all streams together take at most `memory` bytes; the oldest are deleted first.
    """

    def __init__(
        self,
        redis: redis.Redis,
        retention: Retention,
        *,
        memory: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._redis = redis
        self._retention = retention
        self._memory = memory
        self._clock = clock or SystemClock()
        self._put = redis.register_script(scripts.PUT)
        self._make_room = redis.register_script(scripts.MAKE_ROOM)
        self._oldest = redis.register_script(scripts.OLDEST)
        self._claim = redis.register_script(scripts.CLAIM)
        self._discard = redis.register_script(scripts.DISCARD)

    def put(
        self,
        stream_id: str,
        jpeg: bytes,
        measures: Measures,
        *,
        time: float,
        pts: float,
        epoch: int = 0,
        decode_ms: float = 0.0,
        token: int | None = None,
    ) -> FrameRef:
        """Store `jpeg`, with its `measures`, as the newest frame of a stream: see :meth:`put_all`.

        Args:
            time: when the frame was captured, seconds since the Unix epoch.
            pts: stream time of the frame, seconds.
            epoch: how often the clocks that date the stream have stepped.
            decode_ms: milliseconds that decoding, sampling and encoding took.
            token: shows that the caller's worker runs the stream.
        """
        frame = SampledFrame(jpeg, measures, time, pts, epoch, decode_ms)
        return self.put_all(stream_id, [frame], token=token)[0]

    def put_all(
        self, stream_id: str, frames: Sequence[SampledFrame], *, token: int | None = None
    ) -> list[FrameRef]:
        """Store `frames`, oldest first, as the newest ones of a stream: all of them or none.

        Args:
            token: shows that the caller's worker runs the stream. With it, the newest frames are
                not stored again: a client repeats them when the reply was lost.

        Returns the references of the stored frames. Raises Superseded when a frame was stored with
        a higher token; redis.exceptions.OutOfMemoryError when data other than frames fills the
        server.
        """
        kept, refs = self._retention, [_reference(stream_id, frame) for frame in frames]
        tiers = kept.tier_milliseconds()
        arguments: list[str | bytes | float] = [
            stream_id,
            max(1, round(kept.lifetime * 1000)),
            math.floor(self._clock.time() * 1000),
            kept.max_frames,
            kept.max_bytes,
            kept.min_frames,
            self._memory or 0,
            token or 0,
            len(tiers),
            *tiers,
        ]
        wanted = 0
        for frame, ref in zip(frames, refs, strict=True):
            record = ref.model_dump_json(exclude={"stream_id", "id"})
            size = len(frame.jpeg) + len(record) + _OVERHEAD
            wanted += size
            milliseconds = math.floor(frame.time * 1000)
            arguments += [milliseconds, record, frame.jpeg, frame.measures.change, size]
        try:
            ids = self._run(self._put, *arguments)
        except redis.exceptions.ResponseError as error:
            if not is_full(error):
                raise
            # The server is full although the frames are within bounds: delete older ones.
            self._run(self._make_room, max(_MIN_ROOM, 2 * wanted))
            try:
                ids = self._run(self._put, *arguments)
            except redis.exceptions.ResponseError as again:
                if is_full(again):
                    raise redis.exceptions.OutOfMemoryError(_FULL) from None
                raise
        if ids is None:
            raise Superseded
        for ref, frame_id in zip(refs, cast(list[bytes], ids), strict=True):
            ref.id = frame_id.decode()
        return refs

    def newest(self, stream_id: str, count: int = 1) -> list[FrameRef]:
        """Return the newest `count` frames, oldest first."""
        entries = self._redis.xrevrange(redis_keys.frame_index(stream_id), count=count)
        return self._unexpired(stream_id, reversed(cast(list[Any], entries)))

    def newest_of(self, stream_ids: Sequence[str]) -> list[FrameRef | None]:
        """Return the newest frame of each of some streams, in one round trip."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for stream_id in stream_ids:
                pipeline.xrevrange(redis_keys.frame_index(stream_id), count=1)
            found = pipeline.execute()
        frames = [self._unexpired(*each) for each in zip(stream_ids, found, strict=True)]
        return [newest[0] if newest else None for newest in frames]

    def between(self, stream_id: str, since: float, until: float) -> list[FrameRef]:
        """Return the frames captured in `[since, until)`, to the millisecond, as they came.

        Where the capture clock was set back, frames of both datings are found.
        """
        if until <= since:
            return []
        index = redis_keys.frame_index(stream_id)
        low, high = math.floor(since * 1000), math.ceil(until * 1000)
        with self._redis.pipeline(transaction=False) as pipeline:
            pipeline.lrange(redis_keys.frame_dates(stream_id), 0, -1)
            pipeline.xrange(index, min=str(max(0, low)), max=f"({max(0, high)}-0")
            dates, entries = pipeline.execute()
        if dates:
            with self._redis.pipeline(transaction=False) as pipeline:
                for start, end in _id_ranges(dates, low, high):
                    pipeline.xrange(index, min=start, max=f"({end}")
                entries = [entry for page in pipeline.execute() for entry in page]
        return self._unexpired(stream_id, entries)

    def span(self, stream_id: str) -> tuple[float, float] | None:
        """Return the capture times of the oldest and the newest frame; None without frames."""
        newest = self.newest(stream_id)
        if not newest:
            return None
        oldest = next(self._oldest_first(stream_id), newest[0])
        return oldest.time, newest[0].time

    def oldest_times(self, stream_ids: Sequence[str]) -> list[float | None]:
        """Return when the oldest frame of each of some streams was captured, in seconds since the
        Unix epoch; None for one without frames. Takes one round trip."""
        if not stream_ids:
            return []
        found = cast(
            list[bytes | None],
            self._oldest(
                keys=[redis_keys.frame_index(stream_id) for stream_id in stream_ids],
                args=[round(self._clock.time() * 1000), _MAX_EXPIRED],
            ),
        )
        return [float(json.loads(ref)["time"]) if ref else None for ref in found]

    def count(self, stream_id: str) -> int:
        """Return the number of frames in the index."""
        return self._redis.xlen(redis_keys.frame_index(stream_id))

    def load(self, refs: Sequence[FrameRef]) -> list[bytes]:
        """Return the JPEGs of `refs`, in their order.

        Raises StreamerError(FRAMES_EXPIRED) if any is gone: a clip with gaps would mislead.
        """
        if not refs:
            return []
        keys = [redis_keys.jpeg(ref.stream_id, ref.id) for ref in refs]
        jpegs = cast(list[bytes | None], self._redis.mget(keys))
        found = [jpeg for jpeg in jpegs if jpeg is not None]
        if len(found) < len(refs):
            raise StreamerError(
                ErrorCode.FRAMES_EXPIRED,
                f"{len(refs) - len(found)} of the {len(refs)} frames of the clip have expired: "
                "ask sooner, or raise frame_ttl, frame_bytes_per_stream or frames_memory.",
            )
        return found

    def load_present(self, refs: Sequence[FrameRef]) -> list[bytes]:
        """Return the JPEGs of those of `refs` that are kept, in their order."""
        if not refs:
            return []
        found = self._redis.mget([redis_keys.jpeg(ref.stream_id, ref.id) for ref in refs])
        return [jpeg for jpeg in cast(list[bytes | None], found) if jpeg is not None]

    def present(self, refs: Sequence[FrameRef]) -> list[FrameRef]:
        """Return the `refs` whose JPEG still exists: a full server may have deleted some."""
        with self._redis.pipeline(transaction=False) as pipeline:
            for ref in refs:
                pipeline.exists(redis_keys.jpeg(ref.stream_id, ref.id))
            return [ref for ref, there in zip(refs, pipeline.execute(), strict=True) if there]

    def claim(self, stream_id: str, token: int) -> None:
        """Refuse the frames of former owners of a stream from now on: those with a lower token.

        Raises Superseded when a higher one is known.
        """
        if self._run(self._claim, stream_id, token) is None:
            raise Superseded

    def discard(self, stream_id: str) -> None:
        """Delete all frames of a stream."""
        self._run(self._discard, stream_id)

    def _run(self, script: Script, *arguments: str | bytes | float) -> Any:
        return script(
            keys=[redis_keys.FRAME_BYTES, redis_keys.FRAME_AGES],
            args=[
                redis_keys.frame_index(""),
                redis_keys.frame_state(""),
                redis_keys.jpeg("", "").rstrip(":") + ":",
                *arguments,
            ],
        )

    def _oldest_first(self, stream_id: str) -> Iterator[FrameRef]:
        start = "-"
        while True:
            page = cast(
                list[Any],
                self._redis.xrange(redis_keys.frame_index(stream_id), min=start, count=_PAGE),
            )
            if not page:
                return
            yield from self._unexpired(stream_id, page)
            start = f"({page[-1][0].decode()}"

    def _unexpired(self, stream_id: str, entries: Any) -> list[FrameRef]:
        now = self._clock.time() * 1000
        found = []
        for frame_id, fields in entries:
            if float(fields[b"expires"]) <= now:
                continue
            name = {"stream_id": stream_id, "id": frame_id.decode()}
            try:
                found.append(FrameRef.read(json.loads(fields[b"ref"]) | name))
            except StreamerError as error:
                _log.warning("frame_unreadable", **name, reason=error.message)
        return found


def _reference(stream_id: str, frame: SampledFrame) -> FrameRef:
    """Return the reference of a frame that has no id yet."""
    measures = frame.measures
    # the worker's own numbers: none of them has to be searched for what cannot be stored
    return FrameRef.read(
        {
            "stream_id": stream_id,
            "id": "",  # the server chooses it
            "time": frame.time,
            "pts": frame.pts,
            "epoch": frame.epoch,
            "width": measures.width,
            "height": measures.height,
            "change": measures.change,
            "detail": measures.detail,
            "fresh": measures.fresh,
            "decode_ms": frame.decode_ms,
        }
    )


def _id_ranges(dates: Sequence[bytes], low: int, high: int) -> list[tuple[str, str]]:
    """Return the ranges of ids, `[start, end)`, of frames captured in `[low, high)` milliseconds;
    `dates` is what `redis_keys.frame_dates` holds."""
    sections: list[tuple[tuple[int, int], int]] = [((0, 0), 0)]
    for noted in dates:
        name, milliseconds = noted.decode().split()
        ms, _, sequence = name.partition("-")
        sections.append(((int(ms), int(sequence)), int(milliseconds)))
    ends = [first for first, _ in sections[1:]] + [(2**63, 0)]
    ranges = []
    for (first, shift), end in zip(sections, ends, strict=True):
        start, stop = max(first, (low + shift, 0)), min(end, (high + shift, 0))
        if start < stop:
            ranges.append((f"{start[0]}-{start[1]}", f"{stop[0]}-{stop[1]}"))
    return ranges
