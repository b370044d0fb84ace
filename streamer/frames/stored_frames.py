"""Frames as pictures and videos: the newest, those of a range, and those behind an answer."""

import re
from collections.abc import Sequence
from datetime import datetime

from streamer.domain.frame import MAX_GAPS, FrameRef, StoredFrame, StoredFrameList
from streamer.domain.result import Result
from streamer.domain.stream import Stream
from streamer.domain.timestamp import rfc3339, to_datetime
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.history import FrameHistory
from streamer.frames.store import FrameStore
from streamer.limits import MAX_CLIP_FRAMES
from streamer.sources.streams import StreamRegistry

MAX_LISTED_FRAMES = 1000
"""Frames of one list."""

_STREAM_ID = re.compile(r"str_[0-9a-f]{1,32}(-past)?")
_FRAME_ID = re.compile(r"\d{1,15}-\d{1,15}")


class StoredFrames:
    """The frames of attached streams that are still kept, in Redis or in the archive."""

    def __init__(self, registry: StreamRegistry, frames: FrameStore, history: FrameHistory) -> None:
        self._registry = registry
        self._frames = frames
        self._history = history

    def newest(self, ref: str) -> tuple[FrameRef, bytes]:
        """Return the newest frame of a stream, given by id or name, and its JPEG.

        Raises StreamerError: UNKNOWN_STREAM, NO_FRAMES.
        """
        stream = self._registry.get(ref)
        for frame in reversed(self._frames.present(self._frames.newest(stream.id, 8))):
            return frame, self._frames.load([frame])[0]
        raise StreamerError(
            ErrorCode.NO_FRAMES,
            f"No frame of {stream.name} is kept: its state is {stream.state}. Try again when it "
            "is running.",
        )

    def between(self, ref: str, since: datetime, until: datetime, limit: int) -> StoredFrameList:
        """Return up to `limit` frames of a range, evenly chosen. Raises as :meth:`clip`."""
        found = self._history.select(*self._range(ref, since, until), limit)
        return StoredFrameList(
            frames=[StoredFrame.of(frame) for frame in found.frames], gaps=found.gaps
        )

    def clip(self, ref: str, since: datetime, until: datetime) -> bytes:
        """Return an MP4 video of a range, of at most MAX_CLIP_FRAMES frames, evenly chosen.

        Raises StreamerError: UNKNOWN_STREAM, NO_FRAMES, INVALID_REQUEST, ARCHIVE_UNAVAILABLE.
        """
        from streamer.frames.clip import encode_clip

        chosen = self._history.select(*self._range(ref, since, until), MAX_CLIP_FRAMES).frames
        frames = self._frames.present(chosen)
        if not frames:
            raise StreamerError(
                ErrorCode.NO_FRAMES,
                "No frame of this range is kept: raise frame_ttl or history, or set archive_url, "
                "to keep those of later ranges.",
            )
        return encode_clip(list(zip(frames, self._frames.load(frames), strict=True)))

    def picture(self, stream_id: str, frame_id: str) -> bytes:
        """Return the JPEG of a frame. Raises StreamerError(FRAMES_EXPIRED) if it is not kept."""
        if _STREAM_ID.fullmatch(stream_id) and _FRAME_ID.fullmatch(frame_id):
            ref = FrameRef(
                stream_id=stream_id, id=frame_id, time=0, pts=0, width=1, height=1, change=0
            )
            for jpeg in self._frames.load_present([ref]):
                return jpeg
        raise StreamerError(
            ErrorCode.FRAMES_EXPIRED,
            f"The frame {frame_id[:40]} is not kept any more: raise frame_ttl or history to keep "
            "later ones.",
        )

    def of_result(self, result: Result) -> StoredFrameList:
        """Return the frames that a result was made from, each with the tiles that it had."""
        grids = [frame.grid for frame in result.plan or []]
        kept = self._kept(result)
        frames = []
        for number, time in enumerate(result.frame_times):
            grid = grids[number] if number < len(grids) else None
            ref = kept.get(rfc3339(time))
            frames.append(
                StoredFrame.of(ref, grid) if ref is not None else StoredFrame(time=time, grid=grid)
            )
        return StoredFrameList(frames=frames, gaps=result.gaps)

    def of_results(self, results: Sequence[Result]) -> StoredFrameList:
        """Return the frames of several results, evenly chosen, at most MAX_LISTED_FRAMES."""
        most = max(1, MAX_LISTED_FRAMES // max(1, len(results)))
        lists = [self.of_result(result) for result in results]
        return StoredFrameList(
            frames=[frame for each in lists for frame in _some(each.frames, most)],
            gaps=[gap for each in lists for gap in each.gaps][:MAX_GAPS],
        )

    def kept(self, result: Result) -> list[FrameRef]:
        """Return the frames that a result was made from and that are kept, in order of time."""
        kept = self._kept(result)
        times = (rfc3339(time) for time in result.frame_times)
        return sorted((kept[each] for each in {*times} & kept.keys()), key=lambda ref: ref.time)

    def _kept(self, result: Result) -> dict[str, FrameRef]:
        """Return the frames in the range of a result that are kept, by their time in records."""
        if not result.frame_times or not result.stream_id:
            return {}
        first, last = min(result.frame_times), max(result.frame_times)
        found: dict[str, FrameRef] = {}
        for stream_id in (self._history.restored_id(result.stream_id), result.stream_id):
            refs = self._frames.between(
                stream_id, first.timestamp() - 0.001, last.timestamp() + 0.002
            )
            found |= {rfc3339(to_datetime(ref.time)): ref for ref in self._frames.present(refs)}
        return found

    def _range(self, ref: str, since: datetime, until: datetime) -> tuple[Stream, float, float]:
        stream = self._registry.get(ref)
        if until <= since:
            raise StreamerError(
                ErrorCode.INVALID_REQUEST,
                "The range is empty: 'until' must be after 'since'.",
                "until",
            )
        return stream, since.timestamp(), until.timestamp()


def _some(frames: Sequence[StoredFrame], most: int) -> list[StoredFrame]:
    """Return at most `most` frames, evenly chosen."""
    share = max(1.0, len(frames) / most)
    return [frames[int(number * share)] for number in range(min(len(frames), most))]
