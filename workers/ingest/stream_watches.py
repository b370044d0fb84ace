"""The standing questions of one stream: its frames go in, clip requests come out."""

import hashlib
import math
from collections.abc import Callable, Sequence
from datetime import timedelta

import redis
import structlog

from streamer.domain import (
    ClipRequest,
    FrameRef,
    StreamCounters,
    StreamSpec,
    Watch,
    to_datetime,
)
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.selection import pick
from streamer.jobs import Jobs
from streamer.settings import Settings
from workers.ingest.windows import Window, WindowGatherer

_FRESH_ROOM = 2
"""Windows of a recording that the frame store has room for beside those in flight: the one being
gathered, and the one that has just been closed."""


_JITTER = 0.25
"""Part of a sampling interval that the wall clock of a live frame may be off."""


_log = structlog.get_logger(__name__)


def frames_per_window(spec: StreamSpec) -> int:
    """Sampled frames that the longest window of `spec` may have."""
    longest = max((watch.window for watch in spec.watches), default=0.0)
    return math.ceil(longest * spec.sampling.max_fps) + 1


def frames_to_keep(spec: StreamSpec, settings: Settings) -> int:
    """How many of the newest frames must stay, so that no clip in flight loses any."""
    if not spec.watches:
        return 0
    clips = settings.max_pending_clips if spec.live else settings.max_file_clips
    each = frames_per_window(spec)
    wanted = min((clips + _FRESH_ROOM) * each, settings.frames_per_stream)
    return max((1 + _FRESH_ROOM) * each, wanted)


class StreamWatches:
    """Gathers a stream's frames into the windows of its watches and asks about each.

    Live: a window whose time has come takes the place of the oldest one that still waits; one that
    comes while Redis is away is dropped. Recording: `pause` is called until there is room, and
    `insist` repeats what Redis did not take; request ids say which window is asked about, so that
    neither that nor a worker that takes over asks anything twice.
    """

    def __init__(
        self,
        spec: StreamSpec,
        jobs: Jobs,
        settings: Settings,
        counters: StreamCounters,
        *,
        pause: Callable[[], None],
        insist: Callable[[Callable[[], None]], None],
    ) -> None:
        self._jobs = jobs
        self._settings = settings
        self._counters = counters
        self._pause = pause
        self._insist = insist
        self._gatherers: dict[str, tuple[Watch, WindowGatherer]] = {}
        self._resumed = False
        self._spec = spec
        self.follow(spec)

    def follow(self, spec: StreamSpec) -> None:
        """Take over an edited `spec`: watches whose windows are cut as before keep what they have
        gathered, and a new question is asked about all of it."""
        resampled = spec.sampling != self._spec.sampling
        self._spec = spec
        known, self._gatherers = self._gatherers, {}
        for watch in spec.watches:
            before = known.get(watch.id)
            if before is not None and not resampled and _cut(before[0]) == _cut(watch):
                self._gatherers[watch.id] = (watch, before[1])
            else:
                self._gatherers[watch.id] = (watch, self._gatherer(watch))

    def add(self, frame: FrameRef, quiet: float) -> None:
        """Take the next sampled frame, and ask about the windows that it closes.

        None will follow within `quiet` seconds of stream time.
        """
        for watch, gatherer in list(self._gatherers.values()):
            for window in gatherer.add(frame, quiet):
                self._ask(watch, window)

    def advance(self, at: float) -> None:
        """No frame of a live stream will follow before `at` (wall clock): ask about the windows
        that have ended, however long it takes until the next frame is worth keeping."""
        for watch, gatherer in list(self._gatherers.values()):
            if (window := gatherer.advance(at)) is not None:
                self._ask(watch, window)

    def finish(self, end: float) -> None:
        """No frame will follow before `end`: ask about what has been gathered, then begin anew."""
        for watch, gatherer in list(self._gatherers.values()):
            window = gatherer.flush(end)
            gatherer.restart()
            if window is not None:
                self._ask(watch, window)

    def resume(self, frames: Sequence[FrameRef]) -> None:
        """A recording goes on after `frames`, which a worker before this one has stored.

        It may have died between storing a frame and asking about the window before: that one is
        gathered again too.
        """
        self._resumed = True
        for watch, gatherer in list(self._gatherers.values()):
            since = resume_from(watch, frames[-1].pts)
            for frame in frames:
                for window in gatherer.add(frame) if frame.pts >= since else ():
                    self._ask(watch, window)

    def _gatherer(self, watch: Watch) -> WindowGatherer:
        return WindowGatherer(
            watch.window,
            watch.max_frames,
            by="time" if self._spec.live else "pts",
            pick=pick,
            tolerance=_JITTER / self._spec.sampling.max_fps if self._spec.live else 1e-6,
        )

    def _ask(self, watch: Watch, window: Window) -> None:
        if self._spec.live:
            self._ask_live(watch, self._live(watch, window))
        else:
            request = self._recorded(watch, window)
            self._insist(lambda: self._ask_recorded(request))

    def _ask_live(self, watch: Watch, request: ClipRequest) -> None:
        self._counters.clips += 1
        try:
            keep = self._settings.max_pending_clips - 1
            self._counters.clips_dropped += self._jobs.drop_oldest(watch.id, keep)
            self._jobs.submit(request)
        except redis.exceptions.RedisError as error:
            self._counters.clips_dropped += 1
            _log.warning("clip_lost", stream=self._spec.name, reason=type(error).__name__)

    def _ask_recorded(self, request: ClipRequest) -> None:
        if self._resumed and self._is_known(request.id):
            return
        while self._jobs.in_flight(self._spec.id) >= self._room():
            self._pause()
        self._jobs.submit(request)
        self._counters.clips += 1

    def _room(self) -> int:
        """Clips of a recording in flight at most: no more than the store keeps frames for."""
        kept = frames_to_keep(self._spec, self._settings)
        stored = kept // frames_per_window(self._spec) - _FRESH_ROOM
        return max(1, min(self._settings.max_file_clips, stored))

    def _is_known(self, request_id: str) -> bool:
        try:
            self._jobs.status(request_id)
        except StreamerError as error:
            if error.code is ErrorCode.UNKNOWN_QUERY:
                return False
            raise
        return True

    def _live(self, watch: Watch, window: Window) -> ClipRequest:
        start, end = to_datetime(window.start), to_datetime(window.end)
        return ClipRequest.for_watch(self._spec, watch, start=start, end=end, frames=window.frames)

    def _recorded(self, watch: Watch, window: Window) -> ClipRequest:
        start, end = round(window.start, 3), round(window.end, 3)
        # an edited watch has its id still, and a longer window may begin where a short one did
        place = f"{self._spec.id} {watch.id} {watch.window} {start}"
        return ClipRequest.for_watch(
            self._spec,
            watch,
            start=self._spec.created_at + timedelta(seconds=start),
            end=self._spec.created_at + timedelta(seconds=end),
            frames=window.frames,
            id="req_" + hashlib.sha256(place.encode()).hexdigest()[:16],
            data={"media_start": start, "media_end": end},
        )


def _cut(watch: Watch) -> tuple[float, int]:
    return watch.window, watch.max_frames


def resume_from(watch: Watch, reached: float) -> float:
    """Where the window before the one that `reached` (stream seconds) lies in begins."""
    return max(0.0, (math.floor(reached / watch.window) - 1) * watch.window)
