"""Submit the clips of a stream, a request for each window of a watch, and bound them."""

import hashlib
import math
from collections.abc import Callable
from datetime import timedelta

import redis

from streamer.clock import Clock, SystemClock
from streamer.domain.request import ClipRequest
from streamer.domain.stream import StreamCounters, StreamSpec
from streamer.domain.timestamp import to_datetime
from streamer.domain.watch import Watch
from streamer.errors import ErrorCode, StreamerError
from streamer.frames.coverage import window_gaps
from streamer.queues.jobs import Jobs
from streamer.queues.recorded_windows import RecordedWindows
from streamer.redis_client.outage import Outage
from streamer.settings import Settings
from workers.ingest.windows import Window

_SPARE_WINDOWS = 2
"""Windows of a recording that the frame store has room for beside those in flight: the one being
gathered, and the one that has just been closed."""

_ROUNDING = 1e-3
"""Seconds by which a window may begin before the end of the last one because times are rounded."""

_MAX_AHEAD = 2.0
"""Seconds, beside a sampling interval, by which a window may end after it is asked about."""


def frames_per_window(spec: StreamSpec) -> int:
    """Return how many sampled frames the longest window of `spec` may have."""
    longest = max((watch.window for watch in spec.watches), default=0.0)
    return math.ceil(longest * spec.sampling.max_fps) + 1


def frames_to_keep(spec: StreamSpec, settings: Settings) -> int:
    """Return how many of the newest frames must stay, so that no clip in flight loses any."""
    if not spec.watches:
        return 0
    clips = settings.max_pending_clips if spec.live else settings.max_file_clips
    each = frames_per_window(spec)
    wanted = min((clips + _SPARE_WINDOWS) * each, settings.frames_per_stream)
    return max((1 + _SPARE_WINDOWS) * each, wanted)


def max_clips_in_flight(spec: StreamSpec, settings: Settings) -> int:
    """Return how many clips of a recording may be in flight: no more than the frame store keeps
    frames for."""
    stored = frames_to_keep(spec, settings) // frames_per_window(spec) - _SPARE_WINDOWS
    return max(1, min(settings.max_file_clips, stored))


class LiveClips:
    """Submits the clips of a live stream, and never waits.

    A new clip takes the place of the oldest one of its watch that still waits, when too many are in
    flight. One that comes while Redis is away is dropped. Both are counted.

    No time is asked about twice. Windows would overlap where the frames of one were dated too late,
    and where another worker takes a stream over. So each begins where the one before ended, by what
    this worker remembers and by what Redis noted with the request. Frames about which an earlier
    worker has asked are left out; those of this worker are all in one window, however dated. Only a
    window that is dated before the end of the last one as a whole keeps its times: better asked
    about twice than unseen.

    Args:
        token: shows that this worker runs the stream.
        clock: the time by which frames are dated.
    """

    def __init__(
        self,
        jobs: Jobs,
        settings: Settings,
        counters: StreamCounters,
        outage: Outage,
        token: int | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.jobs = jobs
        self._token = token
        self._outage = outage
        self._settings = settings
        self._counters = counters
        self._clock = clock or SystemClock()
        self._asked_until: dict[str, float] = {}  # by watch, epoch seconds
        self._inherited: dict[str, float] = {}  # the same, by an earlier worker

    def resume(self, spec: StreamSpec) -> None:
        """Continue after the windows about which earlier workers have asked. Call it once the
        token refuses them. Raises redis.exceptions.RedisError."""
        self._inherited = self.jobs.asked_until([watch.id for watch in spec.watches])
        self._asked_until = dict(self._inherited)

    def submit(self, spec: StreamSpec, watch: Watch, window: Window) -> None:
        """Ask a watch's question about one window. Raises Superseded."""
        (start, end), frames = window.captured, window.frames
        asked_until = self._end_of_last(spec, watch)
        if asked_until - start > _ROUNDING:
            if asked_until == self._inherited.get(watch.id):
                frames = [each for each in frames if each.time >= asked_until]
            if not frames:
                return
            if end > asked_until:  # else the frames of a whole window are less late than the last
                start = asked_until
        # Noted before it is certain: after an error it is not known whether Redis has the request.
        kept = {each.id for each in spec.watches}
        known = {owner: at for owner, at in self._asked_until.items() if owner in kept}
        self._asked_until = known | {watch.id: max(end, asked_until)}
        gaps = window_gaps(spec.sampling, frames, start, end, watch.max_frames)
        request = ClipRequest.for_watch(
            spec, watch, start=to_datetime(start), end=to_datetime(end), frames=frames, gaps=gaps
        )
        self._counters.clips += 1
        try:
            self._counters.clips_dropped += self.jobs.submit_newest(
                request, self._settings.max_pending_clips, self._token
            )
        except redis.exceptions.RedisError as error:
            self._counters.clips_dropped += 1
            self._outage.failed("clips", error)
        else:
            self._outage.worked("clips")

    def _end_of_last(self, spec: StreamSpec, watch: Watch) -> float:
        """Return when the last window of a watch ended, epoch seconds; 0 if there was none, or
        if the clock was set back since: no window ends long after it is asked about."""
        end = self._asked_until.get(watch.id, 0.0)
        ahead = end - self._clock.time()
        return 0.0 if ahead > _MAX_AHEAD + 1 / spec.sampling.max_fps else end


class RecordingClips:
    """Submits the clips of a recording, and loses none.

    The id of a request is derived from its window, so that neither a repeated call nor a worker
    that takes the recording over asks anything twice.

    Args:
        room: returns how many clips may be in flight.
        wait: called repeatedly while so many are.
        insist: calls what it is given again until Redis has taken it.
        token: shows that this worker runs the recording.

    Attributes:
        submitted: ids of the requests that have been submitted, by an earlier worker too.
        resumed: whether an earlier worker read the recording; one of an earlier release did not
            record what it submitted.
        warning: what is wrong with the recording, for the results of the clips to come.
    """

    def __init__(
        self,
        jobs: Jobs,
        windows: RecordedWindows,
        counters: StreamCounters,
        *,
        room: Callable[[], int],
        wait: Callable[[], None],
        insist: Callable[[Callable[[], None]], None],
        token: int | None = None,
    ) -> None:
        self.jobs = jobs
        self._counters = counters
        self._room = room
        self._wait = wait
        self._insist = insist
        self._windows = windows
        self._token = token
        self.submitted: set[str] = set()
        self.resumed = False
        self.warning: str | None = None
        self._in_flight = math.inf  # at most: others only answer clips

    def submit(self, spec: StreamSpec, watch: Watch, window: Window) -> None:
        """Ask a watch's question about one window, as soon as there is room for its clip.

        Raises Superseded.
        """
        request = self._request(spec, watch, window)
        self._insist(lambda: self._submit(spec, request))

    def _submit(self, spec: StreamSpec, request: ClipRequest) -> None:
        if request.id in self.submitted:
            return
        if self.resumed and self._is_known(request.id):
            self._windows.note(request)
        else:
            self._await_room(spec)
            self._in_flight += 1
            self.jobs.submit(request, token=self._token)
            self._counters.clips += 1
        self.submitted.add(request.id)

    def _await_room(self, spec: StreamSpec) -> None:
        """Wait until another clip may be in flight; Redis counts them only when that is in
        doubt."""
        while self._in_flight >= self._room():
            self._in_flight = self.jobs.in_flight(spec.id)
            if self._in_flight >= self._room():
                self._wait()

    def _is_known(self, request_id: str) -> bool:
        try:
            self.jobs.status(request_id)
        except StreamerError as error:
            if error.code is ErrorCode.UNKNOWN_QUERY:
                return False
            raise
        return True

    def _request(self, spec: StreamSpec, watch: Watch, window: Window) -> ClipRequest:
        start, end = round(window.start, 3), round(window.end, 3)
        # An edited watch keeps its id, and a longer window may begin where a short one did.
        place = f"{spec.id} {watch.id} {watch.window} {start}"
        return ClipRequest.for_watch(
            spec,
            watch,
            start=spec.created_at + timedelta(seconds=start),
            end=spec.created_at + timedelta(seconds=end),
            frames=window.frames,
            id="req_" + hashlib.sha256(place.encode()).hexdigest()[:16],
            data={"media_start": start, "media_end": end},
            warning=self.warning,
        )
