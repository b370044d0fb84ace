"""Gather the frames of one stream into the windows of its watches."""

import math
import zlib
from collections.abc import Callable, Sequence

from streamer.domain.frame import FrameRef
from streamer.domain.stream import StreamSpec
from streamer.domain.watch import Watch
from streamer.frames.selection import select_frames
from workers.ingest.windows import Window, WindowGatherer

_JITTER = 0.25
"""Share of a sampling interval by which the time of a live frame may be off."""

_MAX_FIRST_WINDOW = 2.0
"""Seconds of the first window of a watch on a live stream: a person waits for its answer."""

_ROUNDING = 1e-6
"""Seconds by which the stream time of a recorded frame may be off."""

Submit = Callable[[StreamSpec, Watch, Window], None]
"""Asks a watch's question about a window of the stream."""


class StreamWatches:
    """Gathers a stream's frames into the windows of its watches, and has each asked about.

    Args:
        spec: the stream and its watches.
        submit: called with every window that is complete.
        resumed: whether an earlier worker has asked these watches before.

    Attributes:
        ends_at: stream time at which the first of the open windows ends, seconds; infinite while
            none has a frame. Any thread may read it.
    """

    def __init__(self, spec: StreamSpec, submit: Submit, resumed: bool = False) -> None:
        self.ends_at = math.inf
        self._submit = submit
        self._resumed = resumed
        self._gatherers: dict[str, tuple[Watch, WindowGatherer]] = {}
        self._spec = spec
        self.follow(spec)
        self._resumed = False

    def __len__(self) -> int:
        """Return the number of watches."""
        return len(self._gatherers)

    def follow(self, spec: StreamSpec) -> None:
        """Continue with an edited `spec`: watches whose windows are cut as before keep what they
        have gathered, and a new question is asked about all of it."""
        resampled = spec.sampling != self._spec.sampling
        self._spec = spec
        known, self._gatherers = self._gatherers, {}
        for watch in spec.watches:
            before = known.get(watch.id)
            if before is not None and not resampled and _cut(before[0]) == _cut(watch):
                self._gatherers[watch.id] = (watch, before[1])
            else:
                self._gatherers[watch.id] = (watch, self._gatherer(watch))
        self._note_end()

    def add(self, frame: FrameRef, quiet: float) -> None:
        """Add the next sampled frame, and ask about the windows that it closes.

        No frame will follow within `quiet` seconds of stream time.
        """
        for watch, gatherer in list(self._gatherers.values()):
            for window in gatherer.add(frame, quiet):
                self._submit(self._spec, watch, window)
        self._note_end()

    def advance(self, pts: float) -> None:
        """Ask about the windows that have ended: no frame of a live stream will follow before
        stream time `pts`, however long it takes until the next one is worth keeping."""
        for watch, gatherer in list(self._gatherers.values()):
            if (window := gatherer.advance(pts)) is not None:
                self._submit(self._spec, watch, window)
        self._note_end()

    def finish(self, end: float) -> None:
        """Ask about what has been gathered, then start over: no frame will follow before `end`."""
        for watch, gatherer in list(self._gatherers.values()):
            window = gatherer.flush(end)
            gatherer.restart()
            if window is not None:
                self._submit(self._spec, watch, window)
        self._note_end()

    def resume(self, frames: Sequence[FrameRef]) -> None:
        """Continue a recording after `frames`, which an earlier worker stored.

        That worker may have died between storing a frame and asking about the window before it, so
        that window is gathered again too.
        """
        for watch, gatherer in list(self._gatherers.values()):
            since = resume_from(watch, frames[-1].pts)
            for frame in frames:
                for window in gatherer.add(frame) if frame.pts >= since else ():
                    self._submit(self._spec, watch, window)
        self._note_end()

    def _note_end(self) -> None:
        gatherers = (gatherer for _, gatherer in self._gatherers.values())
        self.ends_at = min((gatherer.ends_at for gatherer in gatherers), default=math.inf)

    def _gatherer(self, watch: Watch) -> WindowGatherer:
        live = self._spec.live
        return WindowGatherer(
            watch.window,
            watch.max_frames,
            live=live,
            pick=select_frames,
            tolerance=_JITTER / self._spec.sampling.max_fps if live else _ROUNDING,
            first_length=watch.window if self._resumed else _MAX_FIRST_WINDOW,
            shift=watch.window * _share_of(self._spec.id),
        )


def _share_of(stream_id: str) -> float:
    """Return a number of [0, 1) that differs from stream to stream: when in the length of a window
    its windows end. All watches of a stream share it, and so the pictures that a worker opened."""
    return zlib.crc32(stream_id.encode()) / 2**32


def _cut(watch: Watch) -> tuple[float, int]:
    """Return what determines how the frames of a watch are cut into windows."""
    return watch.window, watch.max_frames


def resume_from(watch: Watch, reached: float) -> float:
    """Return the stream time at which the window before the one that contains `reached` begins."""
    return max(0.0, (math.floor(reached / watch.window) - 1) * watch.window)
