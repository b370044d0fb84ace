"""Tell for how long the frames of live streams are kept, and warn where that is too short."""

from collections.abc import Sequence

from streamer.domain.error_info import ErrorInfo
from streamer.domain.stream import Stream, StreamState
from streamer.errors import ErrorCode
from streamer.frames.store import FrameStore

_WINDOWS = 2
"""Windows of a watch that must be kept: one that is being gathered, and one that waits for the
model."""

_MARGIN = 5.0
"""Seconds for which a stream may run until its first frame is stored."""


def note_kept(frames: FrameStore, streams: Sequence[Stream], now: float) -> None:
    """Note in the records of live `streams` for how long their frames are kept, with a warning in
    those that lose frames before questions about them may have been answered.

    `now` is in seconds since the Unix epoch. Raises redis.exceptions.RedisError.
    """
    live = [stream for stream in streams if stream.live]
    oldest = frames.oldest_times([stream.id for stream in live])
    for stream, since in zip(live, oldest, strict=True):
        if since is None:
            continue
        stream.kept_seconds = kept = round(max(0.0, now - since), 1)
        needed = _WINDOWS * max((watch.window for watch in stream.watches), default=0.0)
        runs_for = now - stream.since.timestamp()
        if stream.state is StreamState.RUNNING and kept < needed < runs_for - _MARGIN:
            message = (
                f"Frames are kept for {kept:g} s, less than {_WINDOWS} windows of a watch "
                f"({needed:g} s), so some are gone before they are asked about: raise "
                "frames_memory or frames_per_stream, or Redis's maxmemory, or lower jpeg_quality."
            )
            warning = ErrorInfo(code=ErrorCode.FRAMES_KEPT_SHORT, message=message)
            stream.warnings = [*stream.warnings, warning]
